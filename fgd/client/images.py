"""The client's methods of single images: what the networks of a job find on each."""

from __future__ import annotations

from typing import Any, Literal

from fgd.client.answers import Answer
from fgd.client.transport import Transport, read, route


class ImageCounts(Answer):
    """Of one network on one image."""

    role: str
    """"student", "control", "teacher", "teacher NAME"."""
    found: int
    missed: int
    false: int
    """Detections of no box."""


class ComparedImage(Answer):
    """On which a student and another network find the same, or not."""

    image_id: int
    name: str
    sample: int | None = None
    """Its place in the split."""
    boxes: int = 0
    apart: int | None = None
    """How much the two differ."""
    worse_by: int | None = None
    """The student's mistakes less the other's."""
    counts: tuple[ImageCounts, ...] = ()


class ComparedDetections(Answer):
    """What teacher, control and student find on each image, and where they differ most."""

    job: str
    split: str
    score: float
    against: str | None = None
    """The network that the student is compared with."""
    networks: tuple[dict[str, Any], ...] = ()
    """"role", "job", "model"; "reason" where nothing is known of what it finds, and then "evaluate", a body to ask
    for it."""
    worse: int = 0
    """Images on which the student makes more mistakes than the other."""
    better: int = 0
    total: int = 0
    items: tuple[ComparedImage, ...] = ()
    """Those that differ most first."""


class NamedSample(Answer):
    """An image of a data set, and its place in the split."""

    split: str
    n: int
    name: str


class Images:
    """Part of `Client`."""

    _service: Transport

    def compare_detections(
        self,
        job_id: str,
        most: int = 50,
        *,
        split: Literal["val", "test"] = "val",
        against: Literal["control", "teacher"] | None = None,
        class_name: str | None = None,
        only: Literal["worse", "better"] | None = None,
        score: float = 0.3,
        offset: int = 0,
    ) -> ComparedDetections:
        """The images on which a job's student and its control (or its teacher, see `against`) differ most, at most 500.

        class_name: look at one class alone. only: images on which the student makes more mistakes, or fewer. score:
        detections with a lower one do not count.
        """
        filters = {"against": against, "class": class_name, "only": only, "score": score, "offset": offset}
        path = route("jobs", job_id, "detections")
        return read(ComparedDetections, self._service.get(path, split=split, limit=most, **filters))

    def detections_of_image(self, job_id: str, image_id: int, split: Literal["val", "test"] = "val") -> dict[str, Any]:
        """One image: "boxes", the ground truth, and of each of "networks" its "detections" with score and "hit"."""
        return self._service.json(route("jobs", job_id, "detections", str(image_id)), split=split)

    def find_samples(
        self, dataset_id: str, name: str, split: Literal["train", "val", "test", "unlabelled"] | None = None
    ) -> list[NamedSample]:
        """Images with this text in the name of their file, at most 50; first those that are called so."""
        return self._service.items(NamedSample, route("datasets", dataset_id, "samples"), name=name, split=split)
