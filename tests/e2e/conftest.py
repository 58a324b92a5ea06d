"""A home with an imported data set, and what runs on it. Every test gets its own copy and leaves no process behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image as Picture

from api.core import datasets
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from tests.e2e.parts import PATIENT_S, Bench, Service, environment, processes_of, until


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of a few small images."""
    return drawn(tmp_path_factory.mktemp("pictures"))


def drawn(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 8), ("val", 2)):
        (root / split).mkdir()
        images, boxes = [], []
        for n in range(count):
            name = f"{split}-{n}.png"
            Picture.new("RGB", (64, 48), (n * 30, 80, 120)).save(root / split / name)
            images.append({"id": n + 1, "file_name": name, "width": 64, "height": 48})
            boxes.append(
                {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
            )
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def template(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home in which one data set has been imported, by a worker without a broker; and the data set's id."""
    home = tmp_path_factory.mktemp("template")
    url = f"sqlite:///{home}/fgd.db"
    db.upgrade(url)
    engine = db.make_engine(url)
    with db.transaction(engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="pictures", path=str(pictures))).id
    bench = Bench(home, dataset, engine)

    def state() -> str:
        with db.reading(engine) as s:
            return str(datasets.get(s, DEFAULT_PROJECT, dataset).state)

    try:
        worker = bench.worker()
        until(lambda: state() != "verifying", what="the import")
        assert state() == "ready", bench.log()
        worker.terminate()
        assert worker.wait(timeout=PATIENT_S) == 0, bench.log()
    finally:
        bench.close()
    return home, dataset


@pytest.fixture
def home(template: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(template[0], tmp_path / "home"))


@pytest.fixture
def bench(template: tuple[Path, str], home: Path) -> Iterator[Bench]:
    """No worker runs yet."""
    with bench_on(home, template[1]) as bench:
        yield bench


@pytest.fixture(scope="module")
def busy(template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One worker with three slots, for all tests that leave it as it was."""
    home = Path(shutil.copytree(template[0], tmp_path_factory.mktemp("busy") / "home"))
    with bench_on(home, template[1]) as bench:
        bench.worker(FGD_SLOTS="3")
        yield bench


@contextmanager
def bench_on(home: Path, dataset: str) -> Iterator[Bench]:
    bench = Bench(home, dataset, db.make_engine(f"sqlite:///{home}/fgd.db"))
    try:
        yield bench
    finally:
        bench.close()
    until(lambda: not processes_of(home), what="the end of every process")


@pytest.fixture
def start_service(template: tuple[Path, str], home: Path) -> Iterator[Callable[..., Service]]:
    """Starts `fgd serve` on a home of this test's own."""
    with services(template[1]) as start:
        yield lambda home=home, **more: start(home, **more)


@pytest.fixture(scope="module")
def service(template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that leave it running."""
    home = Path(shutil.copytree(template[0], tmp_path_factory.mktemp("service") / "home"))
    with services(template[1]) as start:
        yield start(home)


@pytest.fixture(scope="module")
def odd_service(template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A home too deep for a socket, with a blank in it; a key; and a worker that hardly ever looks by itself."""
    deep = tmp_path_factory.mktemp("odd").joinpath("a home", *["deep"] * 25)
    shutil.copytree(template[0], deep)
    with services(template[1]) as start:
        yield start(deep, FGD_API_KEY="k" * 40, FGD_POLL_S="600", FGD_SWEEP_S="600")


@contextmanager
def services(dataset: str) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(home: Path, **more: str) -> Service:
        with (home / "serve.out").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "fgd.cli", "serve", "--home", str(home)],
                env=environment(home, FGD_PORT="0", **more), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        service = Service(home, dataset, process)
        started.append(service)
        until(lambda: "is ready at" in service.output() or process.poll() is not None, what="the banner")
        assert process.poll() is None, service.output()
        url = json.loads((home / "serve.lock").read_text())["url"]
        key = {"Authorization": f"Bearer {more['FGD_API_KEY']}"} if "FGD_API_KEY" in more else {}
        service.http.close()
        service.http = httpx.Client(base_url=url, timeout=PATIENT_S, headers=key)
        return service

    try:
        yield start
    finally:
        for service in started:
            service.process.kill()
            service.process.wait()
            service.http.close()
    for service in started:
        until(lambda home=service.home: not processes_of(home), what="the end of every process")


@contextmanager
def real_services(home: Path, data_root: Path, **more: str) -> Iterator[Service]:
    """A service with the real trainer, and an empty database where `home` is new; times that suit it."""
    home.mkdir(exist_ok=True)
    trainer = json.dumps([sys.executable, "-m", "fgd.train"])
    with services("") as start:
        yield start(
            home, FGD_TRAINER=trainer, FGD_STALL_S="200", FGD_GRACE_S="60", FGD_DATA_ROOTS=str(data_root), **more
        )  # fmt: skip
