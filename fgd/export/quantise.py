"""An ONNX file with layers in INT8: which parts a network has, which values its layers see, and the file.

Weights are INT8 with a scale for each channel, activations with one for each tensor, as pairs of QuantizeLinear and
DequantizeLinear around each layer, which onnxruntime fuses with it. What chooses boxes stays float32, and so does all
that is no convolution or linear layer, or lies between two of them. Knows neither AP nor torch.
"""

# N images, H x W pixels

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

WEIGHTED = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "Relu", "MaxPool", "Resize")
"""Operators that pass INT8 on from one layer to the next."""
REPEATED = re.compile(r"_\d+$")
"""What torch appends to the name of a module that is run more than once, as heads are on each level."""
REDUCE_RANGE = True
"""Weights have 7 of the 8 bits: processors without VNNI add products in 16, which those of 8 overflow, and the file
would find there something else than here. On BCCD it cost 0.2 AP."""

Ranges = Mapping[str, tuple[float, float]]
"""Of each tensor the smallest and the largest value."""


@dataclass(frozen=True)
class Part:
    """Layers that are INT8 or float32 together: trunk, neck, the tower or the last convolution of a head."""

    layers: str
    """What the names of their tensors in the state dict begin with."""
    weights: int
    """Numbers that they hold."""
    nodes: tuple[str, ...]
    """Of the graph."""


def load(path: Path) -> Any:
    """The file's model, with the shapes of all its tensors."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    _use_each_constant_itself(model.graph)
    return model


def parts_of(model: Any) -> list[Part]:
    """Those with the fewest weights first. The first convolution, which sees the pixels, is a part of its own."""
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in sizes]
    first = next((node.name for node in weighted), "")
    weights: dict[str, dict[str, int]] = defaultdict(dict)
    nodes: dict[str, list[str]] = defaultdict(list)
    for node in weighted:
        layers = part_of(node.name, whole=node.name == first)
        weights[layers] |= {name: sizes[name] for name in node.input[1:] if name in sizes}
        nodes[layers].append(node.name)
    for node in model.graph.node:
        between = node.op_type in BETWEEN and not any(name in sizes for name in _read(node))
        if between and (layers := part_of(node.name)) in nodes:
            nodes[layers].append(node.name)
    parts = [Part(layers, sum(weights[layers].values()), tuple(nodes[layers])) for layers in nodes]
    return sorted(parts, key=lambda part: (part.weights, part.layers))


def part_of(node: str, *, whole: bool = False) -> str:
    """Of a node's name, which torch makes of its module's. whole: the module itself."""
    modules = [REPEATED.sub("", each) for each in node.split("/")[1:-1]]
    if whole:
        return ".".join([*modules[:2], *modules[-1:]] if len(modules) > 2 else modules)
    depth = 2 if modules[:1] == ["backbone"] or modules[:2] == ["roi_heads", "box_head"] else 3
    return ".".join(modules[:depth])


def ranges(
    model: Any, parts: Sequence[Part], batches_NCHW: Iterable[NDArray[np.float32]], options: onnxruntime.SessionOptions
) -> Ranges:
    """The smallest and the largest value of every tensor that goes into these parts' nodes or comes out of them."""
    inside = {name for part in parts for name in part.nodes}
    constants = {each.name for each in model.graph.initializer}
    read = [name for node in model.graph.node if node.name in inside for name in (*_read(node), node.output[0])]
    tensors = [name for name in dict.fromkeys(read) if name not in constants]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in tensors:
        for reduce in ("ReduceMin", "ReduceMax"):
            # Of nothing there is no smallest, and onnxruntime says so by an empty tensor: keepdims.
            watched.graph.node.append(onnx.helper.make_node(reduce, [name], [f"{reduce}/{name}"], keepdims=1))
            told = onnx.helper.make_tensor_value_info(f"{reduce}/{name}", onnx.TensorProto.FLOAT, None)
            watched.graph.output.append(told)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    least, most = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for batch_NCHW in batches_NCHW:
        seen = session.run(None, {"images": batch_NCHW})
        least = np.minimum(least, [each.min(initial=np.inf) for each in seen[::2]])
        most = np.maximum(most, [each.max(initial=-np.inf) for each in seen[1::2]])
    known = np.isfinite(least) & np.isfinite(most)
    bounds = zip(least.tolist(), most.tolist(), strict=True)
    return {name: bound for name, bound, good in zip(tensors, bounds, known.tolist(), strict=True) if good}


def quantised(model: Any, parts: Sequence[Part], seen: Ranges) -> Any:
    """Another model, with these parts in INT8."""
    data = {name: (np.array(least, np.float32), np.array(most, np.float32)) for name, (least, most) in seen.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=REDUCE_RANGE,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[name for part in parts for name in part.nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=[*WEIGHTED, *BETWEEN],
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = quantizer.model.model
    made.producer_name = model.producer_name
    return made


def _read(node: Any) -> list[str]:
    """The tensors that it computes with: not the sizes of a Resize, nor weights and biases."""
    return list(node.input) if node.op_type == "Add" else list(node.input[:1])


def _use_each_constant_itself(graph: Any) -> None:
    """torch writes equal weights once, and an Identity for each other layer that has them."""
    constants = {each.name for each in graph.initializer}
    same = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in same:
                node.input[place] = same[name]
    left = [node for node in graph.node if not (node.op_type == "Identity" and node.output[0] in same)]
    del graph.node[:]
    graph.node.extend(left)
