"""How long a student takes for one image, as it will be used: in onnxruntime or in torch, on the processor.

What is timed is everything from the pixels to the final boxes. `runner` makes what one run is; `student_search.in_turn`
runs it. onnx and onnxruntime are loaded only where they are what is timed.
"""

# N images, C channels, H x W pixels

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fgd.budget import Latency
from fgd.data.loader import Dataset
from fgd.data.transforms import STRIDE, Transform
from fgd.detectors import Detector, family_of
from fgd.detectors.onnx_graph import Graph
from fgd.engine.device import processor_name, usable_cores
from fgd.errors import FGDError, UserError
from fgd.events import Emit, Note, Phase, Stepped
from fgd.export import operators  # noqa: F401  # the suppression that every graph has
from fgd.process import stopwatch
from fgd.spec import JobSpec, Runtime
from fgd.student_search import figures_of, in_turn
from fgd.types import Batch, Target

OPSET = 18
ROUNDS, ROUNDS_S = 60, 20.0
"""A trained student is run so many times, or as often as it can in so many seconds."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Runner:
    run: Run
    """One image."""
    bytes: int
    """Of the file."""


def refuse_without_runtime(runtime: Runtime) -> None:
    """Raises UserError that says what to install."""
    missing = [name for name in ("onnx", "onnxruntime") if runtime == "onnxruntime" and find_spec(name) is None]
    if missing:
        raise UserError(
            f'to time ONNX files this host needs {" and ".join(missing)}: pip install "fgd-service[export]"; or take '
            '"runtime": "torch"'
        )


def runner(detector: Detector, image_1CHW: Tensor, runtime: Runtime, threads: int, file: Path) -> Runner:
    """detector: in eval mode, on the processor. file: where the ONNX file is written, if there is none yet. Raises
    whatever an export raises where it fails."""
    if runtime == "torch":
        tensors = detector.module.state_dict().values()
        return Runner(in_torch(detector, image_1CHW, threads), sum(each.nbytes for each in tensors))
    if not file.exists():
        export(detector, image_1CHW, file)
    return Runner(in_onnxruntime(file, image_1CHW, threads), file.stat().st_size)


def export(detector: Detector, image_1CHW: Tensor, file: Path) -> None:
    from fgd.export import write

    write.trace(file, graph_of(detector, image_1CHW), 1, OPSET)


def in_onnxruntime(file: Path, image_1CHW: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {"images": image_1CHW.numpy()}
    return lambda: session.run(None, inputs)


def in_torch(detector: Detector, image_1CHW: Tensor, threads: int) -> Run:
    recipe = detector.recipe
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (recipe.image_mean, recipe.image_std))
    height, width = image_1CHW.shape[2:]
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sizes = ((height, width),)

    def run() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            normal_1CHW = (image_1CHW - mean) / std
            padded_1CHW = torch.nn.functional.pad(normal_1CHW, (0, -width % STRIDE, 0, -height % STRIDE))
            batch = Batch(padded_1CHW, sizes, sizes, (nothing,), (0,))
            return detector.detect(detector.predict(detector.features(padded_1CHW), batch), batch)

    return run


def graph_of(detector: Detector, image_1CHW: Tensor) -> Graph:
    kind = family_of(detector.recipe.detector).onnx
    if kind is None:
        raise UserError(f'{detector.recipe.detector.title()} cannot be exported to ONNX; take "runtime": "torch"')
    height, width = image_1CHW.shape[2:]
    return kind(detector, height, width).eval()


def find_as_many_as_trained(detector: Detector, image_1CHW: Tensor) -> None:
    """Set the score threshold of an untrained detector so that about as many boxes pass as an answer may hold.

    Untrained scores are all about alike: with the threshold of a trained one all boxes would pass in one family, and
    none in another, and the suppression would be timed accordingly.
    """
    if family_of(detector.recipe.detector).onnx is None:
        return
    graph = graph_of(detector, image_1CHW)
    graph.chooser.score_thresh = 0.0
    with torch.inference_mode():
        _, scores_1D, _ = graph(image_1CHW)
    if bool((scores_1D > 0).any()):
        graph.chooser.score_thresh = float(scores_1D[scores_1D > 0].min())


# --- a trained student ----------------------------------------------------------------------------------------


def measure_budget(
    spec: JobSpec, student: Detector, images: Dataset, transform: Transform, step: int, epoch: int, emit: Emit
) -> dict[str, Any] | None:
    """What the manifest says of the latency, after the event `latency` said it. None if the spec has no budget.

    images: one of the usual size is what is timed. A failure is reported and not raised: the student is none the worse.
    """
    if spec.latency_budget_ms is None:
        return None
    emit(Phase(phase="timing"))
    threads_before = torch.get_num_threads()
    threads = spec.latency.threads or threads_before
    about = {
        "budget_ms": spec.latency_budget_ms,
        "runtime": spec.latency.runtime,
        "threads": threads,
        "device": processor_name(),
    }
    try:
        refuse_without_runtime(spec.latency.runtime)
        detector = on_processor(student)
        image_1CHW = usual_image(images, transform)
        latency = timed(detector, image_1CHW, spec.latency.runtime, threads)
    except Exception as error:
        reason = str(error) if isinstance(error, FGDError) else f"{type(error).__name__}: {error}"
        message = f"the latency could not be measured, so it is not known whether the budget holds: {reason}"
        emit(Note(code="latency", message=message[:2000], data={**about, "holds": None}, level="warning"))
        return {**about, "holds": None, "reason": reason[:2000]}
    finally:
        torch.set_num_threads(threads_before)
    height, width = image_1CHW.shape[2:]
    holds = latency.median_ms <= spec.latency_budget_ms
    found = {**about, "input": [height, width], "holds": holds, **latency.model_dump()}
    emit(Stepped(step=step, epoch=epoch, values={f"latency/{n}": v for n, v in latency.model_dump().items()}))
    message = (
        f"one image of {height}x{width} takes {latency.said()} in {spec.latency.runtime} on {threads} "
        f"thread{'s' * (threads != 1)}: the budget of {spec.latency_budget_ms:g} ms "
        f"{'holds' if holds else f'is missed by {latency.median_ms - spec.latency_budget_ms:.1f} ms'}"
    )
    if not holds and latency.min_ms <= spec.latency_budget_ms:
        message += f"; the fastest run took {latency.min_ms:.1f} ms, so a machine without other work may keep it"
    emit(Note(code="latency", message=message, data=found, level="info" if holds else "warning"))
    return found


def timed(detector: Detector, image_1CHW: Tensor, runtime: Runtime, threads: int) -> Latency:
    with TemporaryDirectory(prefix="fgd-latency-") as folder:
        one = runner(detector, image_1CHW, runtime, threads, Path(folder) / "student.onnx")
        until = perf_counter() + ROUNDS_S
        times = in_turn(
            {"student": one.run}, most=ROUNDS, until=until, clock=perf_counter, stopwatch=stopwatch.timed, tell=silent
        )
    return Latency.of(times["student"])


def silent(_said: str) -> None:
    pass


def on_processor(student: Detector) -> Detector:
    """A copy in eval mode; the student stays where it is, and as it is."""
    if next(student.module.parameters()).device.type == "cpu":
        detector = copy.deepcopy(student)
    else:
        from fgd.detectors import build

        with torch.random.fork_rng(devices=[]):
            detector = build(student.recipe)
        detector.module.load_state_dict({k: v.cpu() for k, v in student.module.state_dict().items()}, strict=True)
    detector.bf16 = False
    return detector.eval()


def usual_image(images: Dataset, transform: Transform) -> Tensor:
    """An image of the usual size as evaluation resizes it, 1 x 3 x H x W in 0..1."""
    figures = figures_of(images.images)
    place = next(
        n for n, each in enumerate(images.images) if (each.height, each.width) == (figures.height, figures.width)
    )
    batch = transform([images.sample(place)])
    height, width = batch.image_sizes[0]
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (transform.mean, transform.std))
    return (batch.images_NCHW * std + mean)[:, :, :height, :width].clamp(0, 1).contiguous()


def threads_of_host(asked: int | None) -> int:
    return asked or int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
