"""An exported file finds what plain torchvision finds, says what it is, and is not written where it does not.

onnxruntime sums in other orders than torch, so what both find is compared within the bounds that an export promises,
and detections by the nearest and not by their place in a list.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet  # noqa: E402
from fgd.detectors import build  # noqa: E402
from fgd.engine import weights  # noqa: E402
from fgd.export import __main__ as command  # noqa: E402
from fgd.export import task, usage, verify, write  # noqa: E402
from fgd.recipe import Recipe  # noqa: E402
from fgd.result_files import file_with  # noqa: E402
from fgd.types import Detections  # noqa: E402
from tests.rounding import FLOAT32  # noqa: E402

FAMILIES: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64, backbone="mobilenet_v3_small"),
    "retinanet": RetinaNet(fpn_channels=24, backbone="mobilenet_v3_small"),
    "retinanet_v2": RetinaNet(version=2, fpn_channels=64, backbone="mobilenet_v3_small"),
    "faster_rcnn": FasterRCNN(fpn_channels=24, backbone="mobilenet_v3_small"),
    "faster_rcnn_v2": FasterRCNN(version=2, fpn_channels=24, backbone="mobilenet_v3_small"),
}
CLASSES = ("a", "b", "ç")
MIN_SIZE, MAX_SIZE = 90, 130
SHARPER = {"rpn.head.cls_logits.weight": 2000, "cls_logits.weight": 10, "cls_score.weight": 20}
"""Of a fresh head all scores are so near to each other that rounding would choose; a trained one tells them apart."""


def result_of(folder: Path, spec: DetectorSpec) -> Path:
    torch.manual_seed(0)
    detector = build(Recipe(detector=spec, classes=CLASSES, min_size=MIN_SIZE, max_size=MAX_SIZE)).eval()
    with torch.no_grad():
        for name, parameter in detector.module.named_parameters():
            parameter.mul_(next((factor for end, factor in SHARPER.items() if name.endswith(end)), 1))
            if "classification_head.conv" in name and parameter.ndim == 4:  # RetinaNet 1 has no norms that keep it up
                parameter.mul_(10)
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-1.0)
    weights.export(folder, detector, {"spec": {"student": "tiny"}}, best=None)
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result_of(tmp_path_factory.mktemp("jobs") / str(request.param), FAMILIES[request.param])


@pytest.fixture(scope="module")
def fcos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result_of(tmp_path_factory.mktemp("jobs") / "one", FAMILIES["fcos"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The two real photographs that scikit-learn ships, 640 x 427."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    monkeypatch.setattr(verify, "PASSES", 2)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = command.main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


def pixels_of(photo: Path) -> usage.Array:
    return np.array(Image.open(photo))


def plain_torchvisions(folder: Path, pixels_HWC: usage.Array) -> Detections:
    model = runpy.run_path(str(folder / "model.py"))["load"]()
    with torch.no_grad():
        (found,) = model([torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 255])
    return Detections(found["boxes"], found["scores"], found["labels"])


def detected(session: Any, pixels_HWC: usage.Array) -> Detections:
    return Detections(*map(torch.from_numpy, usage.detect(session, pixels_HWC)))


@pytest.mark.numeric
def test_it_finds_in_photographs_what_plain_torchvision_finds_and_in_a_batch_what_it_finds_alone(
    result: Path, photos: list[Path], export: Export, tmp_path: Path
) -> None:
    file = tmp_path / "student.onnx"
    batch = "1" if result.name.startswith("faster_rcnn") else "dynamic"
    code, out, err = export(result, "--onnx", file, "--batch", batch, "--image", photos[0], "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["size"] == [86, 130]  # 640 x 427, the longer side at its bound
    assert made["detections"] > 0
    assert made["box_px"] <= 1e-2
    assert made["score"] <= 1e-4
    session = verify.open_session(file)
    images = 1 if batch == "1" else "batch"
    assert [each.shape for each in session.get_outputs()] == [[images, 100, 4], [images, 100], [images, 100]]
    for photo in photos:
        theirs, ours = plain_torchvisions(result, pixels_of(photo)), detected(session, pixels_of(photo))
        assert len(theirs.scores_K) == len(ours.scores_K) > 0
        agreement = verify.agreement(theirs, ours, limit=100, side_px=1000)
        assert not agreement.problems
        assert agreement.detections >= len(theirs.scores_K) - 1  # the hundredth may be another one of its score
    if batch == "dynamic":
        for alone, together in alone_and_together(session):
            assert not verify.agreement(alone, together, 100, 100).problems


def alone_and_together(session: Any) -> Iterator[tuple[Detections, Detections]]:
    images_NCHW = torch.stack([verify.synthetic(86, 130), verify.synthetic(130, 86).mT, torch.zeros(3, 86, 130)])
    for image_CHW, together in zip(images_NCHW, verify.onnxs(session, images_NCHW), strict=True):
        yield verify.onnxs(session, image_CHW[None])[0], together


@pytest.mark.numeric
def test_the_file_says_what_it_is_and_what_lies_beside_it_runs_alone_and_prints_what_model_py_prints(
    fcos: Path, photos: list[Path], export: Export, tmp_path: Path
) -> None:
    file = tmp_path / "new/student.onnx"
    code, out, err = export(fcos, "--onnx", file, "--opset", 17, "--image", photos[1])
    assert code == 0, err
    assert "times as fast" in out
    model = onnx.load(file)
    assert {each.domain: each.version for each in model.opset_import}[""] == 17
    told = {each.key: each.value for each in model.metadata_props}
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["size"]) == [86, 130]
    assert json.loads(told["image_mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(told["detector"])["kind"] == "fcos"
    assert told["weights_sha256"] == hashlib.sha256((fcos / "student.safetensors").read_bytes()).hexdigest()
    assert told["spec_sha256"] == hashlib.sha256(b'{"student": "tiny"}').hexdigest()
    for folder in (tmp_path, Path(torch.__file__).parent, Path(usage.__file__).parent):
        assert str(folder).encode() not in file.read_bytes()

    run = [sys.executable, "-I", "-X", "utf8", str(tmp_path / "new/student_onnx.py"), str(file), str(photos[1]), "0"]
    ended = subprocess.run(run, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    theirs = plain_torchvisions(fcos, pixels_of(photos[1]))
    found = [line.split(" [")[0].rsplit(" ", 1) for line in ended.stdout.decode().splitlines()]
    names = ("background", *CLASSES)
    for label, name in enumerate(names):
        expected = sorted(theirs.scores_K[theirs.labels_K == label].tolist())
        printed = sorted(float(score) for named, score in found if named == name)
        # Two decimals, of scores that may differ as much as an export allows.
        assert printed == pytest.approx(expected, abs=0.005 + verify.SCORE_TOLERANCE)


def test_an_image_that_does_not_fit_is_laid_into_the_corner_at_the_scale_of_evaluation() -> None:
    inputs = usage.Inputs(96, 96, min_size=64, max_size=96, image_mean=(0.1, 0.2, 0.3), classes=CLASSES)
    assert usage.size_on_canvas(inputs, 64, 80) == (64, 80)
    assert usage.size_on_canvas(inputs, 80, 64) == (80, 64)
    assert usage.size_on_canvas(inputs, 640, 427) == (95, 64)  # as torchvision rounds it
    small = usage.Inputs(32, 64, min_size=64, max_size=96, image_mean=(0.1, 0.2, 0.3), classes=CLASSES)
    assert usage.size_on_canvas(small, 640, 320) == (32, 16)
    canvas_1CHW, height, width = usage.canvas_of(small, np.full((640, 320, 3), 255, np.uint8))
    assert (height, width) == (32, 16)
    assert (canvas_1CHW[0, :, :, :16] == 1).all()
    assert (canvas_1CHW[0, 1, :, 16:] == np.float32(0.2)).all()


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(30, 41), (100, 70), (57, 200)])
def test_resizing_is_torchs_own(size: tuple[int, int]) -> None:
    pixels_HWC = np.random.default_rng(0).random((57, 83, 3), dtype=np.float32)
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    torchs = torch.nn.functional.interpolate(image_1CHW, size=size, mode="bilinear", align_corners=False)
    # Where a pixel is taken from is a coordinate of up to 83, rounded; its error is that of the weights of four pixels.
    assert np.abs(usage.resize(pixels_HWC, *size) - torchs[0].permute(1, 2, 0).numpy()).max() < 4 * 83 * FLOAT32


def test_a_file_that_finds_something_else_is_not_written(
    fcos: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write.write

    def spoilt(path: Path, *arguments: Any) -> None:
        written(path, *arguments)
        model = onnx.load(path)
        bias = next(each for each in model.graph.initializer if each.name.endswith("cls_logits.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-2), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(write, "write", spoilt)
    code, _, err = export(fcos, "--onnx", tmp_path / "student.onnx")
    assert code == 1
    assert "torch alone finds label" in err
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_is_found_the_comparison_goes_without_the_score_threshold(
    export: Export, tmp_path: Path, fcos: Path
) -> None:
    detector = weights.load_detector(fcos)
    with torch.no_grad():
        detector.module.get_parameter("head.classification_head.cls_logits.bias").fill_(-16.0)
    weights.export(tmp_path / "job", detector, {}, best=None)
    code, out, err = export(tmp_path / "job", "--onnx", tmp_path / "student.onnx", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["detections"] > 0
    assert made["compared_on"] == "a synthetic image, with the score threshold off"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--opset", "9"], 2, "--opset: 9 is not one of 16 to 20"),
        (["--onnx", "student.pt"], 2, "must end in .onnx"),
        (["--image", "missing.jpg"], 2, "missing.jpg: cannot be read"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    options: list[str], code: int, says: str, fcos: Path, export: Export, tmp_path: Path
) -> None:
    ended, _, err = export(fcos, "--onnx", tmp_path / "student.onnx", *options)
    assert ended == code
    assert says in err
    assert not (tmp_path / "student.onnx").exists()


def test_the_best_weights_are_the_last_ones_where_no_others_are_kept(fcos: Path) -> None:
    assert command.weights_in(fcos, "best") == "student.safetensors"
    assert file_with("best", {"student.safetensors", "best.safetensors"}) == "best.safetensors"
    assert file_with("last", {"student.safetensors", "best.safetensors"}) == "student.safetensors"


def test_a_folder_that_is_not_there_is_a_wrong_command(export: Export, tmp_path: Path) -> None:
    code, _, err = export(tmp_path / "nowhere", "--onnx", tmp_path / "student.onnx")
    assert (code, err) == (2, f"error: {tmp_path}/nowhere: No such file or directory\n")
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "empty", "--onnx", tmp_path / "student.onnx")[0] == 2


def test_faster_rcnn_takes_one_image_and_says_so(export: Export, tmp_path: Path) -> None:
    folder = result_of(tmp_path / "job", FAMILIES["faster_rcnn"])
    code, _, err = export(folder, "--onnx", tmp_path / "student.onnx", "--batch", "dynamic")
    assert code == 2
    assert "one image at a time" in err


@pytest.mark.parametrize("option", [["--size", "16", "64"], ["--batch", "0"], ["--batch", "many"]])
def test_a_wrong_number_is_named(option: list[str], export: Export, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export("folder", "--onnx", "student.onnx", *option)
    assert ended.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name.startswith("onnx") else name)
    code, _, err = export("folder", "--onnx", "student.onnx")
    assert code == 2
    assert 'the export needs onnx, onnxruntime: pip install "fgd-service[export]"' in err


def test_a_service_reads_which_field_of_its_request_cannot_be_done(tmp_path: Path) -> None:
    net, out = result_of(tmp_path / "net", FAMILIES["faster_rcnn"]), tmp_path / "answer.json"

    code = task.main([str(net), "--onnx", str(tmp_path / "a.onnx"), "--batch", "dynamic", "--out", str(out)])

    assert code == 2
    error = json.loads(out.read_text())["error"]
    assert (error["code"], error["pointer"]) == ("user_error", "/batch")
    assert "one image at a time" in error["message"]
    assert list(tmp_path.glob("*.onnx*")) == []
