"""torchvision's pretrained weights: the file its enum names, found, checked against the digest in its name, loaded.

The file is looked for in FGD_WEIGHTS_DIR, then in torch hub's cache, then downloaded by torch hub. Nothing is ever
replaced by something weaker: what cannot be had or does not fit raises WeightsError.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from fgd.detector_specs import DetectorSpec
from fgd.detectors import Detector, build, family_of
from fgd.detectors.family import WholeDetector
from fgd.engine import weights
from fgd.errors import WeightsError

FOLDER = "FGD_WEIGHTS_DIR"
DOWNLOAD_S = 30.0
"""Without a byte for so long, a download has failed."""


@dataclass(frozen=True)
class Source:
    """What torchvision's enum says of a file."""

    name: str
    """As torchvision writes it: ResNet18_Weights.IMAGENET1K_V1."""
    url: str
    categories: tuple[str, ...] = ()
    """Of COCO_V1: what each row of the class logits means; the first is the background."""

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def digest_start(self) -> str:
        """The first hexadecimal digits of the file's SHA-256, which torchvision puts into its name."""
        found = re.search(r"-([0-9a-f]{8,})\.", self.file)
        assert found is not None, f"{self.file} contains no digest"
        return found.group(1)


@dataclass(frozen=True)
class PretrainedWeights:
    """What came of it, for the event and the manifest."""

    source: Source
    sha256: str
    copied: list[str]
    afresh: list[str]
    """Tensors that the file has for other classes, or not at all: as initialised."""


def source_of(spec: DetectorSpec) -> Source | None:
    """None for a training from scratch, or from weights of the user's own (fgd.engine.warm_start)."""
    if spec.weights not in ("IMAGENET1K_V1", "COCO_V1"):
        return None
    builder = spec.backbone if spec.weights == "IMAGENET1K_V1" else whole_detector(spec).builder
    member = torchvision.models.get_model_weights(builder)[spec.weights]
    categories = tuple(member.meta["categories"]) if spec.weights == "COCO_V1" else ()
    return Source(str(member), member.url, categories)


def whole_detector(spec: DetectorSpec) -> WholeDetector:
    return family_of(spec).pretrained[spec.variant()]


def norm_eps(spec: DetectorSpec) -> float | None:
    """Of the trunk's norms, where the weights want another than torchvision's constructor gives."""
    if spec.weights == "COCO_V1" and spec.trunk_norm() == "frozen":
        return whole_detector(spec).norm_eps
    return None


def load(student: Detector, source: Source, check_stop: Callable[[], None]) -> PretrainedWeights:
    """Fill the student's trunk, or all of it but the rows of other classes, from the file."""
    path = find(source, check_stop)
    digest = sha256(path)
    if not digest.startswith(source.digest_start):
        raise WeightsError(
            f"{path} is not {source.name}: its SHA-256 begins with {digest[:8]}, but its name says "
            f"{source.digest_start}; delete it, or download {source.url} again"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, Mapping):
            raise TypeError("it contains no state dict")
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise WeightsError(f"{path}: not readable as a state dict ({type(error).__name__}: {error})") from error
    fill = load_detector if student.recipe.detector.weights == "COCO_V1" else load_trunk
    copied, afresh = fill(student, tensors, source)
    return PretrainedWeights(source, digest, copied, afresh)


def load_trunk(student: Detector, tensors: Mapping[str, Tensor], source: Source) -> tuple[list[str], list[str]]:
    """The classifier's layers up to the pyramid's last tap; every one must be in the file, at its shape."""
    prefix = "features." if student.recipe.detector.backbone.startswith("mobilenet") else ""
    offered = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    wanted, ours = student.trunk.state_dict(), {key: whole for whole, key in student.trunk_keys().items()}
    # older files lack the count of batches, which nothing reads where the momentum is a number
    keys = sorted(key for key in wanted if key in offered or not key.endswith("num_batches_tracked"))
    problems = [key for key in keys if key not in offered or offered[key].shape != wanted[key].shape]
    if problems:
        raise WeightsError(f"{source.file} does not fit the trunk {student.recipe.detector.backbone}: {problems[:5]}")
    with torch.no_grad():
        for key in keys:
            wanted[key].copy_(offered[key])
    copied = [ours[key] for key in keys]
    return copied, sorted(student.module.state_dict().keys() - set(copied))


def load_detector(student: Detector, tensors: Mapping[str, Tensor], source: Source) -> tuple[list[str], list[str]]:
    """All of it where the data set has COCO's classes, in its order; else all but what has a row for each class."""
    with torch.random.fork_rng(devices=[]):
        whole = build(student.recipe.but(classes=source.categories[1:]))
    try:
        whole.module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{source.file} does not fit {source.name}: {error}") from error
    wanted, offered = student.module.state_dict(), whole.module.state_dict()
    same = student.recipe.classes == source.categories[1:]
    by_class = set() if same else set(weights.rows_of_classes(student.recipe))
    copied = sorted(wanted.keys() - by_class)
    with torch.no_grad():
        for key in copied:
            wanted[key].copy_(offered[key])
    return copied, sorted(by_class)


# --- the file -------------------------------------------------------------------------------------------------


def find(source: Source, check_stop: Callable[[], None]) -> Path:
    """The file on this host, downloaded into torch hub's cache if it is nowhere."""
    given = os.environ.get(FOLDER)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if given and not Path(given).is_dir():
        raise WeightsError(f"{FOLDER} is {given}, which is not a folder on this host")
    for folder in [*([Path(given)] if given else []), cache]:
        if (folder / source.file).is_file():
            return folder / source.file
    try:
        cache.mkdir(parents=True, exist_ok=True)
        download(source, cache / source.file, check_stop)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the digest is another
        raise WeightsError(
            f"{source.name}: {source.file} is neither in {FOLDER} ({given or 'not set'}) nor in {cache}, and "
            f"{source.url} cannot be downloaded ({error}); put the file into a folder and set {FOLDER} to that folder"
        ) from error
    return cache / source.file


def download(source: Source, path: Path, check_stop: Callable[[], None]) -> None:
    """In a thread, so that a slow line neither looks like a hang nor keeps a stop waiting."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            torch.hub.download_url_to_file(source.url, str(path), source.digest_start, progress=False)
        except BaseException as error:  # raised again by the caller
            failure.append(error)

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_S)
    try:
        thread = threading.Thread(target=work, name="fgd-download", daemon=True)
        thread.start()
        while thread.is_alive():
            check_stop()
            thread.join(0.5)
    finally:
        socket.setdefaulttimeout(before)
    if failure:
        raise failure[0]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
