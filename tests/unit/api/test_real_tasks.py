"""What a worker works out, with the real child, a real network and real pictures; of each noun a child is killed while
it is at work."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import runpy
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from api.core import datasets
from api.core.jobs import attempts
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.columns import Task
from api.core.rows.tables import DEFAULT_PROJECT, Evaluation, Export, Prediction
from fgd import train
from fgd.data import archive, formats
from fgd.data.digits import compose
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import weights
from fgd.recipe import Recipe
from tests.unit.api.conftest import WEIGHTS_DIGEST
from worker.host import Host
from worker.take import take

pytestmark = pytest.mark.long
CLASSES = ("0", "7")
FIGURES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
"""In the order of pycocotools."""


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: it is the children that are tried."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    counts = {"train": 3, "val": 3, "test": 1}
    compose(folder, counts=counts, size=64, classes=CLASSES, box_px=(16, 40), per_image=(1, 2))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but sure enough of itself to find something."""
    torch.manual_seed(0)
    spec = FCOS(fpn_channels=64, backbone="mobilenet_v3_small")
    detector = build(Recipe(detector=spec, classes=CLASSES, min_size=64, max_size=64)).eval()
    with torch.no_grad():
        for name, parameter in detector.module.named_parameters():
            if name.endswith("cls_logits.weight"):
                parameter.mul_(10)
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-1.0)
    folder = tmp_path_factory.mktemp("net") / "result"
    weights.export(folder, detector, {"spec": {}}, best=None)
    return folder


@pytest.fixture
def job(given: Any, pictures: Path, network: Path, tmp_path: Path) -> str:
    return finished_job(given, pictures, network, tmp_path)


@pytest.fixture
def quiet_job(given: Any, pictures: Path, network: Path, tmp_path: Path) -> str:
    """Its student finds nothing, in INT8 neither: so no file of it is worse than another."""
    detector = weights.load_detector(network)
    with torch.no_grad():
        detector.module.get_parameter("head.classification_head.cls_logits.bias").fill_(-16.0)
    weights.export(tmp_path / "quiet", detector, {"spec": {}}, best=None)
    return finished_job(given, pictures, tmp_path / "quiet", tmp_path)


def finished_job(given: Any, pictures: Path, network: Path, tmp_path: Path) -> str:
    """A job whose result is the network and whose data set are the pictures."""
    index, report, sources = formats.read(pictures, "coco", "full")
    archive.pack(index, sources, tmp_path / "archive.tar")
    with db.transaction(given.engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="digits", path="/data/digits"))
        claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        tar = given.store.put_file(tmp_path / "archive.tar")
        datasets.finish_import(
            s, dataset.id, claim.attempt, tar, given.store.put_bytes(index.model_dump_json().encode()), report
        )
    id = str(given.running(dataset=dataset))
    blobs = {file.name: given.store.put_file(file) for file in network.iterdir()}
    files = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, files, WEIGHTS_DIGEST)
    return id


def kill_first_child(host: Host, at_work: Callable[[int, Path], bool]) -> threading.Thread:
    """As soon as it is at work, by its process and its folder."""

    def kill() -> None:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            for file in host.run_folder().glob("*.a1.json"):
                with contextlib.suppress(OSError, ValueError):  # not written yet
                    pid = int(json.loads(file.read_text())["pid"])
                    if at_work(pid, host.settings.home / "work"):
                        os.kill(pid, signal.SIGKILL)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def worked(host: Host, killing: threading.Thread | None = None) -> None:
    while work := take(host):
        work()
    if killing is not None:
        killing.join()


def has_loaded_torch(pid: int, _: Path) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


of_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="where a process tells what it has loaded")


def is_writing_the_file(_: int, work: Path) -> bool:
    return any(work.rglob(".model.onnx.*"))


def finished_by_the_second(client: Any, host: Host, table: type[Task], url: str) -> dict[str, Any]:
    """What became of it after the first child was killed; nothing of that one is left."""
    told = dict(client.get(url).json())
    assert (told["state"], told["error"]) == ("succeeded", None)
    with db.reading(host.engine) as s:
        row = s.get_one(table, told["id"])
        assert (row.attempt, row.losses, row.lease_owner) == (2, 1, None)
    assert list((host.settings.home / "work").iterdir()) == []
    assert list(host.run_folder().glob("*.json")) == []
    return told


@of_linux
def test_an_evaluation_whose_child_is_killed_is_finished_by_another(
    client: Any, host: Host, job: str, tmp_path: Path
) -> None:
    made = client.post("/v1/evaluations", json={"job": job, "confusion_score": 0.05}).json()

    worked(host, kill_first_child(host, has_loaded_torch))

    told = finished_by_the_second(client, host, Evaluation, f"/v1/evaluations/{made['id']}")
    assert (told["result"]["images"], len(told["result"]["per_class"])) == (3, 2)
    assert told["result"]["detections"] > 0
    file = tmp_path / "detections.npz"
    file.write_bytes(client.get(told["files"][0]["url"]).content)
    with np.load(file) as arrays:
        assert len(arrays["val/found_score"]) == told["result"]["detections"]


@of_linux
def test_a_prediction_whose_child_is_killed_is_finished_by_another(
    client: Any, host: Host, job: str, pictures: Path
) -> None:
    photo = next((pictures / "val").rglob("*.*"))
    made = client.post(f"/v1/predictions?job={job}&score=0.05", content=photo.read_bytes()).json()

    worked(host, kill_first_child(host, has_loaded_torch))

    told = finished_by_the_second(client, host, Prediction, f"/v1/predictions/{made['id']}")
    assert told["result"]["networks"][0]["detections"]


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_an_export_whose_child_is_killed_is_finished_by_another(
    client: Any, host: Host, quiet_job: str, pictures: Path, tmp_path: Path, format: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made = client.post("/v1/exports", json={"job": quiet_job, "format": format}).json()

    worked(host, kill_first_child(host, is_writing_the_file))

    told = finished_by_the_second(client, host, Export, f"/v1/exports/{made['id']}")
    assert told["result"]["format"] == format
    contents = {file["role"]: client.get(file["url"]).content for file in told["files"]}
    assert contents.keys() == {"content", "usage"} | ({"report"} if format == "onnx-int8" else set())
    about = onnxruntime.InferenceSession(contents["content"]).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    if format == "onnx-int8":
        report = told["result"]["int8"]
        assert json.loads(contents["report"])["int8"] == report
        assert (report["calibration_images"], report["images"], report["left_out"]) == (3, 3, [])
        assert report["int8"]["bytes"] == len(contents["content"]) < report["float32"]["bytes"] / 2


def test_a_prediction_is_of_the_upright_picture_and_a_broken_one_is_refused(
    client: Any, host: Host, job: str, pictures: Path, tmp_path: Path
) -> None:
    photo = Pillow.open(next((pictures / "val").rglob("*.*"))).convert("RGB").crop((0, 0, 64, 48))
    sent = {
        "upright": photo,
        "turned": photo.transpose(Pillow.Transpose.ROTATE_90),
    }
    exif = Pillow.Exif()
    exif[0x0112] = 6
    for name, picture in sent.items():
        picture.save(tmp_path / f"{name}.png", exif=exif if name == "turned" else None)
    contents = [*((tmp_path / f"{name}.png").read_bytes() for name in sent), b"\x89PNG\r\n\x1a\nbroken"]
    made = [client.post(f"/v1/predictions?job={job}&score=0.05", content=content).json()["id"] for content in contents]

    worked(host)

    upright, turned, broken = (client.get(f"/v1/predictions/{id}").json() for id in made)
    assert upright["state"] == "succeeded", upright["error"]
    assert (upright["result"]["width"], upright["result"]["height"], upright["result"]["orientation"]) == (64, 48, 1)
    assert turned["result"]["orientation"] == 6
    (found,), (again,) = upright["result"]["networks"], turned["result"]["networks"]
    assert found["role"] == "student"
    assert found["detections"]
    assert again["detections"] == found["detections"]
    assert broken["error"]["code"].startswith("image_")
    assert (broken["state"], broken["error"]["message"][:12]) == ("failed", "the picture:")


def test_an_export_runs_without_torch_and_says_its_classes(
    client: Any, host: Host, job: str, pictures: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made = client.post("/v1/exports", json={"job": job}).json()

    worked(host)

    told = client.get(f"/v1/exports/{made['id']}").json()
    assert (told["state"], told["error"]) == ("succeeded", None)
    assert told["result"]["size"] == [64, 64]
    assert "pictures of the data set" in told["result"]["compared_on"]
    for file in told["files"]:
        (tmp_path / file["name"]).write_bytes(client.get(file["url"]).content)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    usage = runpy.run_path(str(tmp_path / "model_onnx.py"))
    photo = next((pictures / "val").rglob("*.*"))
    boxes, scores, labels = usage["detect"](session, np.array(Pillow.open(photo).convert("RGB")))
    assert len(boxes) == len(scores) == len(labels) > 0


@of_linux
def test_a_report_gets_what_a_worker_counts_times_and_draws_though_its_child_is_killed(
    client: Any, host: Host, job: str, given: Any, network: Path
) -> None:
    url = f"/v1/jobs/{job}/report"
    assert client.get(url).json()["inspection"]["state"] == "pending"

    worked(host, kill_first_child(host, has_loaded_torch))

    told = client.get(url).json()
    assert (told["inspection"]["state"], told["inspection"]["reason"]) == ("succeeded", None)
    (student,) = told["networks"]
    assert student["gflops"] > 0
    assert [speed["batch"] for speed in student["speeds"]] == [1, 8]
    assert len(told["pictures"]["pictures"]) == 3
    for picture in told["pictures"]["pictures"]:
        assert base64.b64decode(picture["jpeg"]).startswith(b"\xff\xd8\xff")
        assert [each["role"] for each in picture["networks"]] == ["student"]
    page = client.get(url, headers={"Accept": "text/html"}).text
    assert page.count("data:image/jpeg;base64,") == 3
    assert list((host.settings.home / "work").iterdir()) == []


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A data set that is easy to learn; with it `result`, what a training on it leaves."""
    compose(tmp_path / "easy", counts={"train": 60, "val": 8, "test": 1}, size=64, classes=CLASSES, box_px=(24, 40),
            per_image=(1, 2))  # fmt: skip
    schedule = {
        "epochs": 16, "batch_size": 4, "min_size": 64, "max_size": 64, "flip": "none", "evaluate_every": 16,
        "optimizer": {"kind": "adamw", "lr": 6e-4},
    }  # fmt: skip
    spec = {
        "name": "easy", "teacher": None, "methods": [], "seed": 7, "schedule": schedule,
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 64}, "dataset": {"path": str(tmp_path / "easy")},
        "resources": {"device": "cpu", "threads": 1, "focus_images": 0},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    assert train.main([str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out" / "result"


def test_the_figures_of_a_report_are_those_of_pycocotools(
    client: Any, given: Any, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    job = given.running()
    blobs = {file.name: given.store.put_file(file) for file in learned.iterdir()}
    with db.transaction(given.engine) as s:
        files = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
        attempts.finish(s, job, 1, files, WEIGHTS_DIGEST)
    until = time.monotonic() + 240
    while (report := client.get(f"/v1/jobs/{job}/report").json())["pending"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    (student,) = report["networks"]

    (listed,) = [
        each for each in client.get(f"/v1/jobs/{job}/artifacts").json()["items"] if each["name"] == "detections.npz"
    ]
    file = tmp_path / "detections.npz"
    file.write_bytes(client.get(f"/v1/artifacts/{listed['id']}/content").content)
    truth = coco.COCO(str(next((tmp_path / "easy").rglob("*val*.json"))))
    ids = {Path(image["file_name"]).name: id for id, image in truth.imgs.items()}
    category = {each["name"]: id for id, each in truth.cats.items()}
    with np.load(file) as arrays:
        about = json.loads(arrays["about"].tobytes())
        names = about["names"]["val"]
        rows = zip(*(arrays[f"val/found_{each}"].tolist() for each in ("image", "box", "score", "label")), strict=True)
        found = [
            {
                "image_id": ids[Path(names[image]).name], "category_id": category[about["classes"][label - 1]],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "score": score,
            }
            for image, box, score, label in rows
        ]  # fmt: skip
    judged = evaluation.COCOeval(truth, truth.loadRes(found), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()

    figures = student["figures"]
    assert figures["ap"] > 5, "a figure near zero proves nothing"
    expected = dict(zip(FIGURES, judged.stats.tolist(), strict=True))
    for name, value in expected.items():
        assert figures[name] == (None if value == -1 else pytest.approx(100 * value, abs=1e-4)), name
