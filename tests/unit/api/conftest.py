"""A migrated database, a store and the server, new for each test; and the steps that tests begin with."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import Engine, text
from starlette.exceptions import StarletteDeprecationWarning

from api.core import datasets, workers
from api.core.jobs import attempts, queue_order, requests
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.swept import SweepResult
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Base, Dataset, Job, JobEvent
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.store.open import open_store
from api.core.sweeper import sweep_rows
from api.main import create_app
from fgd.data.index import Report, SplitCounts
from fgd.detector_specs import DetectorSpec
from fgd.recipe import Recipe
from fgd.spec import SubmitJob
from worker import devices
from worker.host import Host
from worker.slots import Slots
from worker.staging import Cache

with warnings.catch_warnings():
    # Starlette 1.10 prefers httpx2, which our client does not use; to be taken out when it does.
    warnings.simplefilter("ignore", StarletteDeprecationWarning)
    from starlette.testclient import TestClient

CLASSES = ("cat", "dog")
WEIGHTS_DIGEST = "e" * 64


class Given:
    """A service in some state; every step is its own transaction, as in life."""

    def __init__(self, engine: Engine, store: BlobStore, roots: Path) -> None:
        self.engine = engine
        self.store = store
        self.roots = roots

    def dataset(
        self, state: str = "ready", classes: tuple[str, ...] = CLASSES, images: int = 40, unlabelled: bool = False
    ) -> Dataset:
        split = SplitCounts(
            images=images, boxes=90, empty_images=0, boxes_per_class=dict.fromkeys(classes, 45), width=(64, 64),
            height=(48, 48), box_sizes={"small": 90, "medium": 0, "large": 0},
        )  # fmt: skip
        splits = {"train": split, "val": split} | ({"unlabelled": split} if unlabelled else {})
        report = Report(
            ok=state == "ready", format="coco", classes=classes, splits=splits,
            defect_counts={}, defects=(),
        )  # fmt: skip
        with db.transaction(self.engine) as s:
            dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="cells", path="/data/cells"))
            if state == "verifying":
                return dataset
            claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
            assert claim is not None
            assert claim.id == dataset.id
            if state == "ready":
                archive, index = self.store.put_bytes(b"archive"), self.store.put_bytes(b"index")
                datasets.finish_import(s, dataset.id, claim.attempt, archive, index, report)
            else:
                datasets.reject(s, dataset.id, claim.attempt, report, "no boxes at all")
            return dataset

    def body(self, dataset: Dataset | None = None, **changes: Any) -> dict[str, Any]:
        """The body of a plain training that is accepted."""
        dataset = dataset or self.dataset()
        return {"name": "a job", "teacher": None, "student": {}, "dataset": dataset.id, "methods": [], **changes}

    def job(self, dataset: Dataset | None = None, **changes: Any) -> str:
        """The id of a queued job."""
        body = SubmitJob.model_validate(self.body(dataset, **changes))
        inputs = {"dataset": {"archive": "a" * 64, "index": "b" * 64}}
        with db.transaction(self.engine) as s:
            return requests.submit(s, DEFAULT_PROJECT, body, body.spec(), inputs=inputs).id

    def running(self, worker: str = "wrk_a", **changes: Any) -> str:
        """The id of a job that `worker` runs as attempt 1."""
        id = self.job(**changes)
        claim = self.claim(worker)
        assert claim is not None
        assert claim.job_id == id
        return id

    def claim_import(self, worker: str = "wrk_a") -> datasets.DatasetClaim | None:
        with db.transaction(self.engine) as s:
            return datasets.claim_import(s, worker, lease_s=20.0)

    def claim(self, worker: str = "wrk_a", cpu: int = 1, cuda: int = 0) -> attempts.Claim | None:
        with db.transaction(self.engine) as s:
            return attempts.claim(s, worker, queue_order.Free(cpu, cuda), lease_s=20.0)

    def succeeded(self, classes: tuple[str, ...] = CLASSES, detector: dict[str, Any] | None = None) -> str:
        """The id of a job whose result can teach."""
        id = self.running()
        network = TypeAdapter(DetectorSpec).validate_python(detector or {})
        recipe = Recipe(detector=network, classes=tuple(classes), min_size=64, max_size=64)
        contents = {
            "student.safetensors": b"weights of " + id.encode(),
            "recipe.json": recipe.model_dump_json().encode(),
        }
        blobs = {name: self.store.put_bytes(data) for name, data in contents.items()}
        files = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
        with db.transaction(self.engine) as s:
            attempts.finish(s, id, 1, files, WEIGHTS_DIGEST)
        return id

    def artifact(self, data: bytes, name: str = "student.safetensors") -> tuple[str, str]:
        """A finished job and its one artifact."""
        id = self.running()
        blob = self.store.put_bytes(data)
        with db.transaction(self.engine) as s:
            attempts.finish(s, id, 1, [attempts.ArtifactIn(name, blob.digest, blob.size)], WEIGHTS_DIGEST)
        return id, blob.digest

    def worker(self, id: str = "wrk_a", cuda: int = 0) -> None:
        gpus = [{"kind": "cuda", "name": "a GPU"}] * cuda
        with db.transaction(self.engine) as s:
            workers.register(s, id, host="here", pid=1, slots=1 + cuda, devices=gpus)

    def look(self, id: str) -> Job:
        with db.reading(self.engine) as s:
            return requests.get(s, DEFAULT_PROJECT, id)

    def events(self, id: str) -> list[str]:
        with db.reading(self.engine) as s:
            rows = s.query(JobEvent).filter_by(job_id=id).order_by(JobEvent.seq).all()
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [row.type for row in rows]

    def attempts(self, id: str) -> list[str | None]:
        with db.reading(self.engine) as s:
            return [row.outcome for row in s.query(Attempt).filter_by(job_id=id).order_by(Attempt.attempt)]

    def later(self, seconds: float) -> None:
        """Let time pass for leases, back-offs and workers: all their times move into the past."""
        for table in Base.metadata.sorted_tables:
            for column in {"lease_expires", "not_before", "last_beat"} & {*table.columns.keys()}:
                self.earlier(table.name, column, seconds)

    def earlier(self, table: str, column: str, seconds: float) -> None:
        """Move a time of every row into the past."""
        then = f"strftime('%Y-%m-%d %H:%M:%f000', {column}, -:by || ' seconds')"
        if self.engine.dialect.name == "postgresql":
            then = f"{column} - make_interval(secs => :by)"
        with db.transaction(self.engine) as s:
            s.execute(text(f"UPDATE {table} SET {column} = {then}"), {"by": seconds})

    def sweep(self) -> SweepResult:
        with db.transaction(self.engine) as s:
            return sweep_rows(s, lease_s=20.0)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database file, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "fgd.db"
    db.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database of this test's own; every test runs on both kinds."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("migrated"), tmp_path / "fgd.db")
        yield f"sqlite:///{tmp_path}/fgd.db"
        return
    with request.getfixturevalue("postgres").migrated() as url:
        yield url


@pytest.fixture
def empty_database(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of another database of the same kind, without tables."""
    if database.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/deep/er/empty.db"
        return
    with request.getfixturevalue("postgres").empty() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database: str, store_settings: dict[str, Any]) -> Settings:
    roots = tmp_path / "roots"
    roots.mkdir()
    # the server sweeps when a test wants it
    return Settings(home=tmp_path, database_url=database, data_roots=(roots,), sweep_s=3600.0, **store_settings)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = db.make_engine(settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(settings: Settings) -> BlobStore:
    return open_store(settings)


@pytest.fixture
def given(engine: Engine, store: BlobStore, settings: Settings) -> Given:
    return Given(engine, store, settings.data_roots[0])


@pytest.fixture
def host(given: Given, settings: Settings) -> Host:
    """A worker with one processor and no broker, whose work this process does when a test wants it."""
    found = devices.Hardware((), "a processor", 1, False, 1, 1)
    cache = Cache(settings.home / "cache", 1, given.store)
    host = Host(settings, given.engine, given.store, None, found, Slots.on_host(1, []), cache, drain_s=1.0)
    host.announced.set()
    return host


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with serve(settings) as client:
        yield client


def serve(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def serving() -> Any:
    """Builds a client for other settings."""
    return serve
