"""The way from a result folder to an ONNX file that is known to be right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fgd.data.images import BadImage, decode
from fgd.data.transforms import Transform
from fgd.detectors import Detector, family_of
from fgd.detectors.onnx_graph import Graph
from fgd.engine.weights import load_detector
from fgd.errors import DatasetError, FGDError, SpecError
from fgd.export import usage, verify, write
from fgd.export.int8 import Int8Request, into_int8
from fgd.export.operators import FIRST_OPSET, LAST_OPSET
from fgd.export.verify import Agreement
from fgd.exported import ExportFormat, ExportResult, Int8Report
from fgd.text import int8_table
from fgd.text.printable import printable


class NotTheSame(FGDError):
    """onnxruntime finds something else than torch."""


@dataclass(frozen=True)
class ExportRequest:
    folder: Path
    weights: str
    onnx: Path
    size: tuple[int, int] | None
    """(height, width); None: that of the first image as evaluation resizes it, else min_size x max_size."""
    batch: int | None
    """None leaves it open."""
    opset: int
    images: tuple[Path, ...]
    """What is compared; () is a synthetic image."""
    called: str = ""
    """What to call them; "": by their names."""
    int8: Int8Request | None = None
    """Quantise the file once it has been compared."""


@dataclass(frozen=True)
class ExportedFile:
    format: ExportFormat
    onnx: str
    usage: str
    report: str | None
    """Of a file in INT8."""
    size: tuple[int, int]
    batch: int | None
    opset: int
    bytes: int
    compared_on: str
    detections: int
    """That were compared."""
    box_px: float
    score: float
    """The largest differences."""
    threads: int
    torch_ms: float
    """Of one batch, as the next one."""
    onnxruntime_ms: float
    int8: Int8Report | None

    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"int8": self.int8 and self.int8.model_dump(mode="json")}

    def result(self) -> ExportResult:
        """Without the names of files."""
        return ExportResult.model_validate(self.figures())

    def show(self) -> None:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
        height, width = self.size
        ratio = self.torch_ms / self.onnxruntime_ms
        for row in (
            (
                "input",
                f"images, float32 {self.batch or 'batch'} x 3 x {height} x {width}, RGB in 0..1, opset {self.opset}",
            ),
            ("compared", f"{self.detections} detections on {self.compared_on}"),
            ("largest difference", f"boxes {self.box_px:.1e} px, scores {self.score:.1e}"),
            ("file", f"{self.bytes / 1e6:.1f} MB"),
            (
                f"ms/batch of {self.batch or 1}",
                f"torch {self.torch_ms:.1f}, onnxruntime {self.onnxruntime_ms:.1f}: {ratio:.2f} times as fast, "
                f"on {self.threads} thread{'s' * (self.threads != 1)}",
            ),
        ):
            shown.add_row(*row)
        Console().print(shown)
        if self.int8 is not None:
            int8_table.show(self.int8, Console())
        print(f"{printable(self.onnx)}\n{printable(self.usage)}  how to use it")
        if self.report is not None:
            print(f"{printable(self.report)}  these figures")


def export(wanted: ExportRequest) -> ExportedFile:
    """Write the file, and beside it how to use it. Raises FGDError and leaves nothing where it is not what torch is."""
    if wanted.onnx.suffix != ".onnx":
        raise SpecError(f"{wanted.onnx}: must end in .onnx", "--onnx")
    if not FIRST_OPSET <= wanted.opset <= LAST_OPSET:
        raise SpecError(f"{wanted.opset} is not one of {FIRST_OPSET} to {LAST_OPSET}", "--opset")
    images = [read(path) for path in wanted.images]
    detector = load_detector(wanted.folder, wanted.weights).eval()
    network, kind = detector.recipe.detector, family_of(detector.recipe.detector).onnx
    if kind is None:
        raise SpecError(f"{wanted.folder} contains {network.title()}, which cannot be exported to ONNX")
    if why := network.refused_batch(wanted.batch):
        raise SpecError(why, "--batch")
    height, width = wanted.size or default_size(detector, images)
    graph = kind(detector, height, width).eval()
    about = write.about(graph, detector.recipe, wanted.folder, wanted.weights)
    wanted.onnx.parent.mkdir(parents=True, exist_ok=True)
    with partial(wanted.onnx) as path:
        write.write(path, graph, wanted.batch, wanted.opset, about)
        session = verify.open_session(path)
        inputs = usage.inputs_of(session)
        canvases = [torch.from_numpy(usage.canvas_of(inputs, pixels)[0][0]) for pixels in images]
        batches = [batch_of(canvas, wanted.batch or 2) for canvas in canvases or [verify.synthetic(height, width)]]
        seen = compare(detector, graph, path, batches, wanted)
        first = batches[0] if wanted.batch else batches[0][:1]
        torch_ms, onnx_ms = verify.race_ms(lambda: verify.torchs(detector, first), lambda: verify.onnxs(session, first))
        report = into_int8(path, wanted.int8) if wanted.int8 is not None else None
    beside = wanted.onnx.with_name(f"{wanted.onnx.stem}_onnx.py")
    beside.write_text(Path(usage.__file__).read_text())
    on = wanted.called or ", ".join(path.name for path in wanted.images) or "a synthetic image"
    made = ExportedFile(
        format="onnx" if report is None else "onnx-int8",
        onnx=str(wanted.onnx),
        usage=str(beside),
        report=None if report is None else str(wanted.onnx.with_name(f"{wanted.onnx.stem}_int8.json")),
        size=(height, width),
        batch=wanted.batch,
        opset=wanted.opset,
        bytes=wanted.onnx.stat().st_size,
        compared_on=on if seen.thresholded else f"{on}, with the score threshold off",
        detections=seen.agreement.detections,
        box_px=seen.agreement.box_px,
        score=seen.agreement.score,
        threads=torch.get_num_threads(),
        torch_ms=torch_ms,
        onnxruntime_ms=onnx_ms,
        int8=report,
    )
    if made.report is not None:
        Path(made.report).write_text(made.result().model_dump_json(indent=2) + "\n")
    return made


@dataclass(frozen=True)
class NetworkOutput:
    agreement: Agreement
    thresholded: bool


def compare(
    detector: Detector, graph: Graph, path: Path, batches: list[Tensor], wanted: ExportRequest
) -> NetworkOutput:
    """Of the file; where torch finds nothing that could be compared, of the same graph without its score threshold."""
    seen = NetworkOutput(agreement_on(detector, path, batches), thresholded=True)
    if not seen.agreement.detections and not seen.agreement.problems:
        with without_threshold(graph), TemporaryDirectory() as folder:
            other = Path(folder) / "all.onnx"
            write.write(other, graph, wanted.batch, wanted.opset, {})
            seen = NetworkOutput(agreement_on(detector, other, batches), thresholded=False)
        if not seen.agreement.detections:
            raise NotTheSame("torch and onnxruntime find nothing to compare; give --image a photo with objects in it")
    if problems := seen.agreement.problems:
        said = "\n".join(problems[:5])
        raise NotTheSame(
            f"{len(problems)} of the detections differ, so nothing was written:\n{said}\n"
            "In a barely trained network, rounding decides between boxes of almost the same score; "
            "try --image with a photo in which it finds objects"
        )
    return seen


def agreement_on(detector: Detector, path: Path, batches: list[Tensor]) -> Agreement:
    session, total = verify.open_session(path), Agreement()
    for images_NCHW in batches:
        side_px = max(images_NCHW.shape[2:])
        pairs = zip(verify.torchs(detector, images_NCHW), verify.onnxs(session, images_NCHW), strict=True)
        for theirs, ours in pairs:
            total.add(verify.agreement(theirs, ours, detector.recipe.detections_per_img, side_px))
    return total


@contextmanager
def without_threshold(graph: Graph) -> Iterator[None]:
    """In the graph, and so in the network that it is made of."""
    before = graph.chooser.score_thresh
    graph.chooser.score_thresh = 0.0
    try:
        yield
    finally:
        graph.chooser.score_thresh = before


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place if all goes well."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def default_size(detector: Detector, images: list[usage.Array]) -> tuple[int, int]:
    recipe = detector.recipe
    if not images:
        return recipe.min_size, recipe.max_size
    return Transform(recipe.min_size, recipe.max_size).size_of(*images[0].shape[:2])


def batch_of(image_CHW: Tensor, count: int) -> Tensor:
    """The image and its mirror image in turn, so that no two neighbours of a batch are the same."""
    return torch.stack([image_CHW.flip(2) if place % 2 else image_CHW for place in range(count)])


def read(path: Path) -> usage.Array:
    try:
        return np.array(decode(path))
    except BadImage as error:
        raise DatasetError(f"{path}: {error}") from error
