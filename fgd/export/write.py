"""A detector to a checked ONNX file that says what it is. Knows nothing of running it."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
import torchvision

from fgd import weights_file
from fgd.detectors.onnx_graph import Graph
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import MANIFEST, RECIPE

OUTPUTS = ("boxes", "scores", "labels")
FORMAT = "fgd-onnx/1"


def write(path: Path, graph: Graph, batch: int | None, opset: int, about: dict[str, str]) -> None:
    """batch: None leaves it open."""
    trace(path, graph, batch, opset)
    model = onnx.load(path)
    _say_shapes(model, graph, batch)
    onnx.helper.set_model_props(model, about)
    model.producer_name = "fgd"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def trace(path: Path, graph: Graph, batch: int | None, opset: int) -> None:
    """A file that runs, and says nothing of itself."""
    images_NCHW = torch.zeros(batch or 2, 3, graph.height, graph.width)
    names = ["images", *OUTPUTS]
    with warnings.catch_warnings(), torch.no_grad():
        # That it is deprecated, and that what we know to be constant is constant. The exporter that replaces it takes
        # no Faster R-CNN (torch 2.14.1: its NMS guards on the number of boxes), and seven times as long for the others.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (images_NCHW,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes=None if batch else {name: {0: "batch"} for name in names},
        )


def _say_shapes(model: Any, graph: Graph, batch: int | None) -> None:
    """Of the outputs; the tracer loses them at the suppression."""
    detections = graph.rows
    for output, shape in zip(model.graph.output, ([detections, 4], [detections], [detections]), strict=True):
        kind = output.type.tensor_type.elem_type
        told = onnx.helper.make_tensor_value_info(output.name, kind, [batch or "batch", *shape])
        output.CopyFrom(told)


def about(graph: Graph, recipe: Recipe, folder: Path, weights: str) -> dict[str, str]:
    """What the file says of itself: texts, and JSON where a value has parts."""
    path = folder / weights
    told: dict[str, Any] = {
        "format": FORMAT,
        "classes": recipe.classes,
        "size": (graph.height, graph.width),
        "min_size": recipe.min_size,
        "max_size": recipe.max_size,
        "image_mean": recipe.image_mean,
        "image_std": recipe.image_std,
        "input": "RGB in 0..1, float32 N x 3 x H x W, normalised by the graph; image_mean where there is no image",
        "detector": recipe.detector.model_dump(mode="json"),
        "score_thresh": recipe.score_thresh,
        "nms_thresh": graph.chooser.nms_thresh,
        "weights_file": weights,
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_digest": weights_file.digest_of_tensors(path),
        "recipe_sha256": hashlib.sha256((folder / RECIPE).read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if spec := spec_digest(folder):
        told["spec_sha256"] = spec
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def spec_digest(folder: Path) -> str | None:
    """SHA-256 of the manifest's spec as JSON with sorted keys; None for weights that no job made."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    spec = manifest.get("spec") if isinstance(manifest, dict) else None
    return None if spec is None else hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
