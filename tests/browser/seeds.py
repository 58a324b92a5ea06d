"""Puts a service into a state without any training: rows as the service itself writes them, in well under a second."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from sqlalchemy import Engine, select

from api.core import datasets, workers
from api.core.jobs import attempts, queue_order, record, requests
from api.core.lifecycle import FailureCode
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Artifact
from api.core.store.names import BlobStore
from fgd.data import archive, formats
from fgd.data.index import Box, Index, Report, SplitCounts
from fgd.detector_specs import FCOS
from fgd.events import Evaluated, Event, Note, Phase, Started, Stepped
from fgd.focus_files import packed
from fgd.presets import resolve
from fgd.recipe import Recipe
from fgd.spec import SubmitJob
from fgd.statistics import detections
from fgd.statistics.detections import SplitDetections

CLASSES = ("cat", "dog")
WORKER = "wrk_seed"
RECIPE = Recipe(detector=FCOS(fpn_channels=64), classes=CLASSES, min_size=96, max_size=128)
RESULT = {"student.safetensors": b"w", "recipe.json": RECIPE.model_dump_json().encode()}
"""Files of a job that may teach another one; no network is built of them."""


@dataclass
class Seeds:
    """Every step is its own transaction, as in life."""

    engine: Engine
    store: BlobStore

    def dataset(self, name: str = "cells", classes: Sequence[str] = CLASSES) -> str:
        """The id of one that is ready."""
        split = SplitCounts(
            images=40, boxes=90, empty_images=0, boxes_per_class=dict.fromkeys(classes, 45), width=(64, 64),
            height=(48, 48), box_sizes={"small": 90, "medium": 0, "large": 0},
        )  # fmt: skip
        report = Report(
            ok=True, format="coco", classes=tuple(classes), splits={"train": split, "val": split}, defect_counts={},
            defects=(),
        )  # fmt: skip
        with db.transaction(self.engine) as s:
            dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name=name, path="/data/cells"))
            claim = datasets.claim_import(s, WORKER, lease_s=20.0)
            assert claim is not None
            archive, index = self.store.put_bytes(b"archive"), self.store.put_bytes(b"index")
            datasets.finish_import(s, dataset.id, claim.attempt, archive, index, report)
            return dataset.id

    def pictured(self, folder: Path, images: Mapping[str, Sequence[tuple[Box, int]]], name: str = "pictures") -> str:
        """The id of one whose pictures can be seen: these in val, 120 x 90 with boxes and labels, and as many in
        train. `folder` is a new one."""
        for split in ("train", "val"):
            (folder / split).mkdir(parents=True)
            for n, file in enumerate(images):
                colour = (90 + 3 * n, 120, 100 + 9 * len(split))  # no two are the same
                Image.new("RGB", (120, 90), colour).save(folder / split / file)
            files = list(images)
            boxes = [(n, *each) for n, file in enumerate(files, 1) for each in images[file]]
            marks = [
                {"id": k, "image_id": n, "category_id": label, "bbox": [x, y, right - x, bottom - y]}
                for k, (n, (x, y, right, bottom), label) in enumerate(boxes)
            ]
            about = [{"id": n, "file_name": file, "width": 120, "height": 90} for n, file in enumerate(files, 1)]
            classes = [{"id": n, "name": each} for n, each in enumerate(CLASSES, 1)]
            content = {"images": about, "annotations": marks, "categories": classes}
            (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
        with db.transaction(self.engine) as s:
            id = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name=name, path=str(folder))).id
        self.imported(folder)
        return id

    def imported(self, folder: Path) -> str:
        """What a worker does with the data set that waits for it, whose content is there. Its id."""
        index, report, sources = formats.read(folder)
        with TemporaryDirectory() as scratch:
            archive.pack(index, sources, Path(scratch) / "images.tar")
            tar = self.store.put_file(Path(scratch) / "images.tar")
        blob = self.store.put_bytes(index.model_dump_json().encode())
        with db.transaction(self.engine) as s:
            claim = datasets.claim_import(s, WORKER, lease_s=20.0)
            assert claim is not None
            datasets.finish_import(s, claim.id, claim.attempt, tar, blob, report)
            return claim.id

    def found(self, dataset: str, on: Mapping[str, Sequence[tuple[Box, int, float]]]) -> bytes:
        """detections.npz of a network that finds these boxes, labels and scores on val images, by name."""
        with db.reading(self.engine) as s:
            digest = datasets.get(s, DEFAULT_PROJECT, dataset).index_digest
        assert digest is not None
        index = Index.model_validate_json(b"".join(self.store.read(digest)))
        images = index.splits["val"]
        made = [(n, *each) for n, image in enumerate(images) for each in on.get(image.name, ())]
        split = SplitDetections.of(
            index.classes, [image.name for image in images], image_id=[image.id for image in images],
            size=[(image.width, image.height) for image in images],
            truth_image=[n for n, image in enumerate(images) for _ in image.boxes],
            truth_box=[box for image in images for box in image.boxes],
            truth_label=[label for image in images for label in image.labels],
            truth_crowd=[crowd for image in images for crowd in image.crowd],
            found_image=[row[0] for row in made], found_box=[row[1] for row in made],
            found_label=[row[2] for row in made], found_score=[row[3] for row in made],
        )  # fmt: skip
        with TemporaryDirectory() as scratch:
            detections.write(Path(scratch) / "detections.npz", {"val": split})
            return (Path(scratch) / "detections.npz").read_bytes()

    def job(self, dataset: str, **changes: Any) -> str:
        """The id of a queued job: plain training, if nothing else is said."""
        given = {"name": "a job", "teacher": None, "student": {}, "dataset": dataset, "methods": [], **changes}
        body = SubmitJob.model_validate(given)
        inputs = {"dataset": {"archive": "a" * 64, "index": "b" * 64}}
        if (teacher := (given["teacher"] or {}).get("job")) is not None:
            of = select(Artifact).where(Artifact.job_id == teacher, Artifact.name.in_(RESULT))
            with db.reading(self.engine) as s:
                inputs["teacher"] = {each.name: each.digest for each in s.scalars(of)}
        with db.transaction(self.engine) as s:
            return requests.submit(s, DEFAULT_PROJECT, body, resolve(body.spec()), inputs=inputs).id

    def taught(self, dataset: str, teacher: str, **changes: Any) -> str:
        """The id of a queued job that learns from another one by FGD."""
        return self.job(dataset, teacher={"job": teacher}, methods=[{"kind": "fgd"}], **changes)

    def looked_at(self, job: str, attempt: int, epoch: int) -> None:
        """What its methods look at after an epoch, on two pictures with a box on their left: the teacher at the box,
        the student more and more so."""
        jpeg = io.BytesIO()
        Image.new("RGB", (64, 32), "gray").save(jpeg, "JPEG")
        photo = {"width": 64, "height": 32, "boxes": [[0, 0, 16, 32]], "labels": ["cat"]}
        photo |= {"jpeg": base64.b64encode(jpeg.getvalue()).decode()}
        photos = [photo | {"position": n, "name": f"<b>{n}</b>.jpg"} for n in (0, 1)]

        def part(name: str, network: str | None, cells: list[int], shape: list[int]) -> dict[str, Any]:
            told = {"method": "fgd", "name": name, "network": network, "level": "p3", "shape": shape, "of": shape}
            values = base64.b64encode(bytes(cells)).decode()
            return told | {"low": 0.0, "high": 4.0, "by_magnitude": False, "values": values}

        seen = [255, 0, 0, 0] * 2
        shown = [
            part("foreground", None, seen, [2, 4]),
            part("spatial attention", "teacher", seen, [2, 4]),
            part("spatial attention", "student", [50 * epoch, 60, 60, 60] * 2, [2, 4]),
            part("channel attention", "teacher", [200, 50], [2]),
            part("channel attention", "student", [120, 60 + epoch], [2]),
        ]
        images = [{"photo": n, "size": [32, 64], "padded": [32, 64], "shown": shown} for n in (0, 1)]
        maps = {"format": "fgd-focus/1", "step": 100 * epoch, "epoch": epoch, "strides": {"p3": 8}, "images": images}
        files = [(None, None, {"format": "fgd-photos/1", "split": "val", "photos": photos}), (100 * epoch, epoch, maps)]
        for step, of_epoch, content in files:
            blob = self.store.put_bytes(packed(content))
            with db.transaction(self.engine) as s:
                attempts.looked_at(s, job, attempt, step, of_epoch, blob)

    def failed(self, job: str, message: str) -> str:
        """The same job, which a worker took and that failed for good."""
        attempt = self.run(job)
        with db.transaction(self.engine) as s:
            attempts.fail(s, job, attempt, FailureCode.user_error, message)
        return job

    def worker(self) -> None:
        with db.transaction(self.engine) as s:
            workers.register(s, WORKER, host="here", pid=1, slots=8, devices=[])

    def run(
        self,
        job: str,
        aps: Sequence[float | None] = (),
        total: int = 0,
        steps: Sequence[Event] = (),
        speed: float = 40.0,
    ) -> int:
        """A worker takes it and reports an evaluation for each of `aps`, one an epoch of 100 steps. The attempt.
        speed: images a second."""
        attempt = self.claim(job)
        epochs = max(total, len(aps), 1)
        started = Started(
            step=0, total_steps=100 * epochs, epochs=epochs, device="cpu", threads=2, precision="float32", versions={}
        )
        said: list[Event] = [Phase(phase="training"), started]
        for epoch, score in enumerate(aps, start=1):
            said += [self.stepped(100 * epoch - 50 * k, epoch, speed) for k in (1, 0)]
            said.append(self.evaluated(100 * epoch, epoch, score))
        self.say(job, attempt, [*said, *steps])
        return attempt

    def claim(self, job: str) -> int:
        with db.transaction(self.engine) as s:
            claim = attempts.claim(s, WORKER, queue_order.Free(8, 0), lease_s=3600.0)
            assert claim is not None, "no queued job"
            assert claim.job_id == job, "an older job is queued as well; run that first"
            return claim.attempt

    def say(self, job: str, attempt: int, events: Sequence[Event], log: bytes = b"") -> None:
        with db.transaction(self.engine) as s:
            record.record(s, job, attempt, events, log)

    def teacher_checked(self, job: str, attempt: int, score: float) -> None:
        note = Note(code="teacher_checked", message=f"the teacher has AP {score}", data={"ap": score, "ap50": score})
        self.say(job, attempt, [note])

    @staticmethod
    def stepped(step: int, epoch: int, speed: float = 40.0) -> Stepped:
        loss = 2.0 * math.exp(-step / 500)
        values = {
            "loss/total": loss * 1.4, "loss/detection": loss, "loss/fgd/focal": loss * 0.4, "lr": 4e-4,
            "images_per_s": speed,
        }  # fmt: skip
        return Stepped(step=step, epoch=epoch, values=values)

    @staticmethod
    def evaluated(step: int, epoch: int, score: float | None) -> Evaluated:
        scale = score or 0.0
        values = {
            "ap": score, "ap50": scale * 1.5, "ap75": scale * 0.9, "ap_s": scale * 0.5, "ap_m": scale, "ap_l": None,
            "ap/cat": scale + 2, "ap/dog": scale - 2,
        }  # fmt: skip
        return Evaluated(step=step, epoch=epoch, split="val", values=values)

    def finish(self, job: str, attempt: int, files: dict[str, bytes] | None = None) -> None:
        blobs = {name: self.store.put_bytes(data) for name, data in (files or {"student.safetensors": b"w"}).items()}
        made = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
        with db.transaction(self.engine) as s:
            attempts.finish(s, job, attempt, made, "e" * 64)

    def finished(self, job: str, aps: Sequence[float | None], files: dict[str, bytes] | None = None) -> str:
        self.finish(job, self.run(job, aps), files)
        return job
