"""What a detector found on each image of a split, beside the ground truth: the file detections.npz of a result.

It is enough to compute AP without the data set and to draw boxes on its images. Any numpy reads it:

    about                     JSON as bytes: {"format": "fgd-detections/1", "classes": [...], "splits": ["val", "test"],
                              "names": {"val": [...]}}; names are the images' files as the data set calls them
    SPLIT/image_id            int64 N, ascending
    SPLIT/size                int32 N x 2: width, height in pixels
    SPLIT/truth_image         int32 T, a place among the N images; likewise SPLIT/found_image of D
    SPLIT/truth_box           float64 T x 4: left, top, right, bottom in pixels of the image as stored
    SPLIT/truth_label         int32 T: 1 is the first class; likewise SPLIT/found_label of D
    SPLIT/truth_crowd         bool T: crowd regions, where detections count neither for nor against
    SPLIT/found_box           float32 D x 4, as truth_box
    SPLIT/found_score         float32 D, 0 to 1; of one image in the order in which the detector gave them

Images that could not be decoded are not in it. The same arrays give the same bytes.
"""

# N images, T boxes of the ground truth, D detections

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

FORMAT = "fgd-detections/1"
_DAY = (1980, 1, 1, 0, 0, 0)
"""Of every entry: a zip holds times, and equal detections are to be equal files."""


class DetectionsUnreadable(ValueError):
    """The file is no detections.npz, or a damaged one."""


@dataclass(frozen=True)
class SplitDetections:
    """One split: images, their boxes, and the detections. The fields are described in this module's docstring."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    image_id: NDArray[np.int64]
    size: NDArray[np.int32]
    truth_image: NDArray[np.int32]
    truth_box: NDArray[np.float64]
    truth_label: NDArray[np.int32]
    truth_crowd: NDArray[np.bool_]
    found_image: NDArray[np.int32]
    found_box: NDArray[np.float32]
    found_score: NDArray[np.float32]
    found_label: NDArray[np.int32]

    @classmethod
    def of(cls, classes: Sequence[str], names: Sequence[str], **arrays: Any) -> Self:
        """From anything that numpy takes for the arrays: types and shapes are made right, and checked.

        Raises ValueError where lengths or places do not fit.
        """
        made = {name: np.asarray(arrays[name], type_).reshape(shape) for name, (type_, shape) in _ARRAYS.items()}
        split = cls(tuple(classes), tuple(names), **made)
        split._check()
        return split

    def _check(self) -> None:
        for name in ("size", "names"):
            if len(getattr(self, name)) != len(self.image_id):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.image_id)} images")
        if np.any(np.diff(self.image_id) <= 0):
            raise ValueError("image_id is not ascending")
        for kind, others in (("truth", ("box", "label", "crowd")), ("found", ("box", "label", "score"))):
            image, label = getattr(self, f"{kind}_image"), getattr(self, f"{kind}_label")
            for other in others:
                if len(getattr(self, f"{kind}_{other}")) != len(image):
                    raise ValueError(f"{kind}_{other} has not one entry for each of {len(image)} boxes")
            if np.any((image < 0) | (image >= len(self.image_id))):
                raise ValueError(f"{kind}_image names an image that is not there")
            if np.any((label < 1) | (label > len(self.classes))):
                raise ValueError(f"{kind}_label names a class that is not there")

    def __len__(self) -> int:
        """How many images."""
        return len(self.image_id)


_ARRAYS: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "image_id": (np.int64, (-1,)),
    "size": (np.int32, (-1, 2)),
    "truth_image": (np.int32, (-1,)),
    "truth_box": (np.float64, (-1, 4)),
    "truth_label": (np.int32, (-1,)),
    "truth_crowd": (np.bool_, (-1,)),
    "found_image": (np.int32, (-1,)),
    "found_box": (np.float32, (-1, 4)),
    "found_score": (np.float32, (-1,)),
    "found_label": (np.int32, (-1,)),
}


def write(path: Path, splits: Mapping[str, SplitDetections]) -> None:
    """The file of these splits, which are of one data set."""
    (classes,) = {split.classes for split in splits.values()}
    names = {name: split.names for name, split in splits.items()}
    about = {"format": FORMAT, "classes": classes, "splits": list(splits), "names": names}
    told = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(errors="surrogatepass"), np.uint8)
    arrays = {f"{name}/{array}": getattr(split, array) for name, split in splits.items() for array in _ARRAYS}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for name, array in {"about": told, **arrays}.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _DAY)
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            file.writestr(entry, content.getvalue())


def read(path: Path) -> dict[str, SplitDetections]:
    """The splits of a file, by name. Raises DetectionsUnreadable, and OSError where it cannot be opened."""
    with path.open("rb") as stream:
        return read_from(stream, str(path))


def read_from(stream: BinaryIO, name: str) -> dict[str, SplitDetections]:
    """The same of an open file or a `BytesIO`; `name` is for the message."""
    try:
        with np.load(stream, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes().decode(errors="surrogatepass"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
            return {
                split: SplitDetections.of(
                    about["classes"], about["names"][split], **{array: file[f"{split}/{array}"] for array in _ARRAYS}
                )
                for split in about["splits"]
            }
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DetectionsUnreadable(f"{name}: not the detections of a job: {error}") from error


def joined(splits: Sequence[SplitDetections]) -> SplitDetections:
    """Several splits of one data set as one, such as val and test, whose images have ids of their own.

    Raises ValueError where the classes differ or an image is in two of them.
    """
    if len({split.classes for split in splits}) != 1:
        raise ValueError("only splits of one data set can be joined: their classes differ")
    image_id = np.concatenate([split.image_id for split in splits])
    if len(np.unique(image_id)) < len(image_id):
        raise ValueError("only splits without a common image can be joined")
    order = np.argsort(image_id, kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    starts = np.cumsum([0, *map(len, splits)])[:-1]
    whole = {name: np.concatenate([getattr(split, name) for split in splits]) for name in _ARRAYS}
    for kind in ("truth_image", "found_image"):
        whole[kind] = place[
            np.concatenate([getattr(split, kind) + start for split, start in zip(splits, starts, strict=True)])
        ]
    names = [name for split in splits for name in split.names]
    whole |= {"image_id": image_id[order], "size": whole["size"][order]}
    return SplitDetections.of(splits[0].classes, [names[n] for n in order], **whole)


def found_as_coco(split: SplitDetections) -> list[dict[str, object]]:
    """The detections as COCO's results: xywh in pixels, category ids are labels."""
    boxes = split.found_box.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(
        split.image_id[split.found_image].tolist(),
        boxes.tolist(),
        split.found_score.tolist(),
        split.found_label.tolist(),
        strict=True,
    )
    return [{"image_id": image, "bbox": box, "score": score, "category_id": label} for image, box, score, label in rows]
