"""A file in INT8 keeps the AP that was asked for, says what it cost, and is not written where it is not worth it.

AP is checked with pycocotools, on boxes that onnxruntime, numpy and pillow find alone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from fgd.budget import Latency  # noqa: E402
from fgd.detectors import family_of  # noqa: E402
from fgd.engine import weights  # noqa: E402
from fgd.export import __main__ as command  # noqa: E402
from fgd.export import int8, operators, quantise, task, verify, write  # noqa: E402, F401
from fgd.export.int8 import Int8Request, NotWorthIt, choose, into_int8  # noqa: E402
from fgd.export.quantise import Part  # noqa: E402
from fgd.exported import FileFigures, Int8Report  # noqa: E402
from fgd.process.exit_codes import exit_code  # noqa: E402
from tests.unit.export.test_export import CLASSES, FAMILIES, MAX_SIZE, MIN_SIZE, result_of  # noqa: E402

PARTS = [Part("logits", 10, ("a",)), Part("tower", 100, ("b",)), Part("trunk", 1000, ("c",))]


class Files:
    """What AP each file has, and which were asked for."""

    def __init__(self, aps: dict[str, float], otherwise: float) -> None:
        self.aps, self.otherwise = aps, otherwise
        self.asked: list[str] = []

    def __call__(self, left_out: Collection[Part]) -> float:
        self.asked.append("+".join(part.layers for part in left_out))
        return self.aps.get(self.asked[-1], self.otherwise)


def test_all_of_it_is_int8_where_that_loses_little() -> None:
    files = Files({}, otherwise=39.6)
    choice = choose(PARTS, files, ap=40.0, max_ap_loss=0.5)
    assert (choice.left_out, files.asked) == ((), [""])


def test_the_part_with_the_fewest_weights_that_suffices_stays_float32() -> None:
    files = Files({"tower": 39.8, "trunk": 40.0}, otherwise=30.0)
    choice = choose(PARTS, files, ap=40.0, max_ap_loss=0.5)
    assert choice.left_out == (PARTS[1],)
    assert files.asked == ["", "logits", "tower"]
    told = int8.why(PARTS[1], choice)
    assert (told.layers, told.weights, told.ap_gain) == ("tower", 100, pytest.approx(9.8))


def test_where_no_part_suffices_alone_those_that_win_most_go_together() -> None:
    files = Files({"logits": 31.0, "tower": 30.0, "trunk": 35.0, "trunk+logits": 39.9}, otherwise=30.0)
    choice = choose(PARTS, files, ap=40.0, max_ap_loss=0.5)
    assert choice.left_out == (PARTS[2], PARTS[0])
    assert files.asked == ["", "logits", "tower", "trunk", "trunk+logits"]
    assert [trial.ap for trial in choice.trials] == [30.0, 31.0, 30.0, 35.0, 39.9]


def test_a_file_without_any_int8_is_none() -> None:
    files = Files({"logits": 33.0}, otherwise=30.0)
    with pytest.raises(NotWorthIt, match=r"AP 33\.0 with logits in float32") as refused:
        choose(PARTS, files, ap=40.0, max_ap_loss=0.5)
    assert refused.value.pointer == "--max-ap-loss"
    assert files.asked[-1] == "logits+tower"
    with pytest.raises(NotWorthIt, match=r"loses at most 0\.5"):
        choose(PARTS[:1], Files({}, otherwise=30.0), ap=40.0, max_ap_loss=0.5)
    with pytest.raises(NotWorthIt, match="no convolution"):
        choose([], Files({}, otherwise=30.0), ap=40.0, max_ap_loss=0.5)


def latency_of(ms: float) -> Latency:
    return Latency(median_ms=ms, p10_ms=ms, p90_ms=ms, min_ms=ms, runs=9, waited_share=0.0)


def report_of(ap: tuple[float, float], ms: tuple[float, float]) -> Int8Report:
    def figures(ap: float, ms: float) -> FileFigures:
        return FileFigures(ap=ap, ap50=ap, ap75=ap, per_class=(), bytes=9, latency=latency_of(ms))

    return Int8Report(
        calibration_images=2, images=2, undecodable=0, max_ap_loss=0.5, ap_loss=ap[0] - ap[1],
        float32=figures(ap[0], ms[0]), int8=figures(ap[1], ms[1]), int8_weights=1, left_out=(), trials=(),
        device="a processor", threads=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ap", "ms", "refused"),
    [
        ((40.0, 39.9), (10.0, 11.0), True),
        ((40.0, 39.9), (10.0, 9.0), False),
        ((40.0, 40.0), (10.0, 11.0), False),
        ((40.0, 40.1), (10.0, 11.0), False),
    ],
)
def test_slower_and_worse_is_refused_and_neither_alone(
    ap: tuple[float, float], ms: tuple[float, float], refused: bool
) -> None:
    report = report_of(ap, ms)
    if not refused:
        int8.refuse_if_slower_and_worse(report)
        return
    with pytest.raises(NotWorthIt, match=r"11\.0 ms .* instead of 10\.0 ms .* AP 39\.90 instead of 40\.00"):
        int8.refuse_if_slower_and_worse(report)


@pytest.mark.parametrize(
    ("node", "layers"),
    [
        ("/backbone/body/layer1/layer1.0/conv1/Conv", "backbone.body"),
        ("/backbone/fpn/inner_blocks.2/inner_blocks.2.0/Conv", "backbone.fpn"),
        ("/head/classification_head/conv/conv.3_4/Conv", "head.classification_head.conv"),
        ("/head/classification_head/cls_logits_2/Conv", "head.classification_head.cls_logits"),
        ("/rpn/head/bbox_pred_1/Conv", "rpn.head.bbox_pred"),
        ("/roi_heads/box_head/fc6/Gemm", "roi_heads.box_head"),
        ("/roi_heads/box_predictor/cls_score/Gemm", "roi_heads.box_predictor.cls_score"),
        ("/Add_3", ""),
    ],
)
def test_a_layer_belongs_to_the_part_that_its_name_says(node: str, layers: str) -> None:
    assert quantise.part_of(node) == layers


# --- real files -------------------------------------------------------------------------------------------------

TOP = 6
"""Detections of an image that are its boxes: an untrained network, to which its own answers are the truth."""


def network_of(folder: Path, family: str) -> Path:
    """Untrained, but its boxes are none without a size: FCOS begins with such."""
    detector = weights.load_detector(result_of(folder / "as_it_begins", FAMILIES[family]))
    with torch.no_grad():
        for name, parameter in detector.module.named_parameters():
            if name.endswith("bbox_reg.bias") and family == "fcos":
                parameter.fill_(1.5)
    weights.export(folder / "result", detector, {}, best=None)
    return folder / "result"


def data_of(folder: Path, network: Path) -> Path:
    """A COCO data set of crops of real photographs, in two sizes, which evaluation leaves as they are."""
    detector = weights.load_detector(network).eval()
    china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))
    (folder / "annotations").mkdir(parents=True)
    for split, first in {"train": 0, "val": 10}.items():
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(4):
            photo, width = (china, MAX_SIZE) if number % 2 else (flower, 100)
            top, left = 40 * number + 5 * first, 90 * number + 10 * first
            pixels_HWC = photo[top : top + MIN_SIZE, left : left + width]
            name = f"{split}{number}.png"
            Image.fromarray(pixels_HWC).save(folder / split / name)
            images.append({"id": number + 1, "file_name": name, "width": width, "height": MIN_SIZE})
            (found,) = verify.torchs(detector, torch.from_numpy(pixels_HWC / np.float32(255)).permute(2, 0, 1)[None])
            sizes_K2 = found.boxes_K4[:, 2:] - found.boxes_K4[:, :2]
            kept_K = (found.labels_K > 0) & (sizes_K2 > 2).all(1)
            best = zip(found.boxes_K4[kept_K].tolist(), found.labels_K[kept_K].tolist(), strict=True)
            for (x1, y1, x2, y2), label in list(best)[:TOP]:
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number + 1, "category_id": label, "iscrowd": 0,
                        "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                    }
                )  # fmt: skip
        assert annotations
        told = {"images": images, "annotations": annotations}
        told["categories"] = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(told))
    return folder


def ap_alone(file: Path, data: Path) -> float:
    """AP of 100 by pycocotools, of what onnxruntime finds in the pictures of val."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    height, width = json.loads(about["size"])
    batch = session.get_inputs()[0].shape[0]
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(data / "annotations/instances_val.json")
        for image in truth.loadImgs(truth.getImgIds()):
            canvas_HWC = np.empty((height, width, 3), np.float32)
            canvas_HWC[:] = np.array(json.loads(about["image_mean"]), np.float32)
            with Image.open(data / "val" / image["file_name"]) as picture:
                pixels_HWC = np.array(picture.convert("RGB"))
            canvas_HWC[: image["height"], : image["width"]] = pixels_HWC.astype(np.float32) / np.float32(255)
            images_NCHW = canvas_HWC.transpose(2, 0, 1)[None].repeat(batch if isinstance(batch, int) else 1, axis=0)
            boxes, scores, labels = (each[0] for each in session.run(None, {"images": images_NCHW}))
            for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
                if score > 0 and label > 0 and x1 <= image["width"] and y1 <= image["height"]:
                    x2, y2 = min(x2, image["width"]), min(y2, image["height"])
                    box = [min(x1, image["width"]), min(y1, image["height"])]
                    box += [x2 - box[0], y2 - box[1]]
                    found.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": score})
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


@dataclass(frozen=True)
class Case:
    network: Path
    data: Path
    file: Path
    """In float32."""


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    @functools.cache
    def case(family: str, batch: int = 1) -> Case:
        folder = tmp_path_factory.mktemp(family)
        network = network_of(folder, family)
        detector = weights.load_detector(network).eval()
        kind = family_of(detector.recipe.detector).onnx
        assert kind is not None
        graph, file = kind(detector, MIN_SIZE, MAX_SIZE).eval(), folder / "float32.onnx"
        write.write(file, graph, batch, 18, write.about(graph, detector.recipe, network, "student.safetensors"))
        return Case(network, data_of(folder / "data", network), file)

    return case


@pytest.fixture
def whichever_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such small networks that is chance."""
    monkeypatch.setattr(int8, "ROUNDS", 1)
    monkeypatch.setattr(int8, "refuse_if_slower_and_worse", lambda report: None)


@pytest.fixture
def worse_neck(monkeypatch: pytest.MonkeyPatch) -> None:
    """In INT8 its maps have the wrong sign: the weights of the last convolutions have it."""
    quantised = quantise.quantised

    def worse(model: Any, parts: list[Part], seen: quantise.Ranges) -> Any:
        of_neck = {name for part in parts if part.layers == "backbone.fpn" for name in part.nodes}
        last = [node for node in model.graph.node if node.name in of_neck and "layer_blocks" in node.name]
        read = {node.input[1] for node in last}
        spoilt = onnx.ModelProto()
        spoilt.CopyFrom(model)
        for each in spoilt.graph.initializer:
            if each.name in read:
                each.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(each), each.name))
        return quantised(spoilt, parts, seen)

    monkeypatch.setattr(quantise, "quantised", worse)


@pytest.mark.long
@pytest.mark.usefixtures("whichever_is_faster")
@pytest.mark.parametrize(("family", "batch"), [("fcos", 1), ("retinanet", 2), ("faster_rcnn", 1)])
def test_the_reported_ap_of_both_files_is_what_pycocotools_finds(
    family: str, batch: int, tmp_path: Path, case_of: Callable[..., Case]
) -> None:
    case, file = case_of(family, batch), tmp_path / "int8.onnx"
    shutil.copy(case.file, file)

    report = into_int8(file, Int8Request(case.data, max_ap_loss=100))

    assert (report.images, report.calibration_images, len(report.trials)) == (4, 4, 1)
    assert report.float32.ap > 50, "the boxes are what the network found"
    assert report.float32.ap == pytest.approx(ap_alone(case.file, case.data), abs=1e-6)
    assert report.int8.ap == pytest.approx(ap_alone(file, case.data), abs=1e-6)
    assert report.int8.bytes == file.stat().st_size < case.file.stat().st_size / 2
    kinds = {each.op_type for each in onnx.load(file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


@pytest.mark.long
@pytest.mark.usefixtures("whichever_is_faster", "worse_neck")
def test_layers_that_lose_too_much_stay_float32_and_beside_the_file_is_what_it_cost(
    tmp_path: Path, case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, file = case_of("fcos"), tmp_path / "out/student.onnx"
    monkeypatch.setattr(verify, "PASSES", 2)
    options = ["--int8", "--max-ap-loss", "30", "--dataset", str(case.data), "--batch", "dynamic", "--json"]
    options += ["--size", str(MIN_SIZE), str(MAX_SIZE)]

    code = command.main([str(case.network), "--onnx", str(file), *options])

    out, err = capsys.readouterr()
    assert code == 0, err
    made = json.loads(out)
    assert (made["format"], made["batch"]) == ("onnx-int8", None)
    assert [each["layers"] for each in made["int8"]["left_out"]] == ["backbone.fpn"]
    assert made["int8"]["left_out"][0]["ap_gain"] > 0
    assert made["int8"]["ap_loss"] <= 30 < made["int8"]["float32"]["ap"] - made["int8"]["trials"][0]["ap"]
    assert {path.name for path in file.parent.iterdir()} == {"student.onnx", "student_onnx.py", "student_int8.json"}
    beside = json.loads((file.parent / "student_int8.json").read_text())
    assert beside["int8"] == made["int8"]
    assert str(tmp_path) not in json.dumps(beside)
    session = verify.open_session(file)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["int8"])["float32_layers"] == ["backbone.fpn"]
    assert [each.shape[0] for each in session.run(None, {"images": np.zeros((3, 3, 90, 130), np.float32)})] == [3] * 3


@pytest.mark.long
@pytest.mark.usefixtures("worse_neck")
def test_a_file_that_is_slower_and_worse_leaves_the_other_one_as_it_is(
    tmp_path: Path, case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, file = case_of("fcos"), tmp_path / "student.onnx"
    shutil.copy(case.file, file)
    ms = {"float32": 10.0, "int8": 11.0}
    monkeypatch.setattr(int8, "race", lambda *_: {name: latency_of(each) for name, each in ms.items()})

    with pytest.raises(NotWorthIt, match="slower and worse") as refused:
        into_int8(file, Int8Request(case.data, max_ap_loss=100))

    assert exit_code(refused.value) == 1
    assert file.read_bytes() == case.file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--int8"], "--dataset: INT8 needs a data set"),
        (["--max-ap-loss", "1"], "--max-ap-loss: is of --int8"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(tmp_path), "--onnx", str(tmp_path / "a.onnx"), *options]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["-1", "101", "nan", "much"])
def test_a_loss_that_is_none_is_named(loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["folder", "--onnx", "a.onnx", "--int8", f"--max-ap-loss={loss}"])
    assert "is not a number from 0 to 100" in capsys.readouterr().err


def test_every_option_that_may_be_at_fault_is_a_field_of_the_request() -> None:
    assert {task.FIELDS[option] for option in ("--int8", "--max-ap-loss", "--batch")} == {
        "/format",
        "/max_ap_loss",
        "/batch",
    }
