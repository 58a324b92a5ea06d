from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.core.store.names import BlobStore, StoreAway
from api.core.store.open import open_store
from fgd.budget import FindStudent
from fgd.data import archive
from fgd.data.index import Image, Index
from fgd.detector_specs import FCOS
from fgd.method_specs import FGD
from fgd.spec import JobSpec
from fgd.spec_fields import FromJob, FromPath, TeacherFromJob, TeacherFromModel, TeacherFromPath
from tests.s3 import BOTH_STORES
from worker import staging
from worker.staging import Cache, InputGone, stage_checkpoint, staged, staged_question, work_folder

JOB = "job_" + "0" * 32
MODEL = "mdl_" + "0" * 32


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "blobs")


@pytest.fixture
def any_store(tmp_path: Path, store_settings: dict[str, Any]) -> BlobStore:
    """Empty; a folder or on S3."""
    return open_store(Settings(home=tmp_path, **store_settings))


def put_archive(store: BlobStore, folder: Path, shade: int) -> str:
    """One image of its own colour, packed; the digest of the archive."""
    folder.mkdir(exist_ok=True)
    source = folder / f"{shade}.png"
    Picture.new("RGB", (40, 30), (shade, 0, 0)).save(source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    image = Image(
        id=1, file=f"images/{digest[:2]}/{digest}.png", name="a", width=40, height=30,
        boxes=((1, 1, 9, 9),), labels=(1,), crowd=(False,),
    )  # fmt: skip
    index = Index(classes=("thing",), splits={"train": (image,)})
    archive.pack(index, {image.file: source}, folder / f"{shade}.tar")
    return store.put_file(folder / f"{shade}.tar").digest


def cache_of(store: BlobStore, tmp_path: Path, max_bytes: int = 10**9) -> Cache:
    return Cache(tmp_path / "cache", max_bytes, store)


@BOTH_STORES
def test_data_set_is_unpacked_once_for_all_jobs(
    any_store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put_archive(any_store, tmp_path / "in", 1)
    cache = cache_of(any_store, tmp_path)
    unpacked: list[Path] = []
    real = archive.unpack
    monkeypatch.setattr(archive, "unpack", lambda tar, folder: unpacked.append(folder) or real(tar, folder))
    seen: list[bool] = []

    def use() -> None:
        with cache.dataset(digest) as folder:
            seen.append((folder / "index.json").is_file())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert len(unpacked) == 1


def test_two_jobs_use_a_data_set_at_the_same_time(store: LocalStore, tmp_path: Path) -> None:
    digest = put_archive(store, tmp_path / "in", 1)
    cache = cache_of(store, tmp_path)
    with cache.dataset(digest) as one, cache.dataset(digest) as other:
        assert one == other


def test_full_cache_lets_the_least_recently_used_go(store: LocalStore, tmp_path: Path) -> None:
    digests = [put_archive(store, tmp_path / "in", shade) for shade in range(3)]
    size = store.path(digests[0]).stat().st_size
    cache = cache_of(store, tmp_path, max_bytes=2 * size)
    for digest in (digests[0], digests[1], digests[0], digests[2]):
        with cache.dataset(digest):
            pass
    assert [(cache.folder / digest).is_dir() for digest in digests] == [True, False, True]


def test_what_a_job_uses_is_never_evicted(store: LocalStore, tmp_path: Path) -> None:
    first, second = (put_archive(store, tmp_path / "in", shade) for shade in range(2))
    cache = cache_of(store, tmp_path, max_bytes=1)
    with cache.dataset(first) as held, cache.dataset(second):
        assert (held / "index.json").is_file()


@BOTH_STORES
def test_evicted_data_set_comes_back_when_it_is_needed(any_store: BlobStore, tmp_path: Path) -> None:
    first, second = (put_archive(any_store, tmp_path / "in", shade) for shade in range(2))
    cache = cache_of(any_store, tmp_path, max_bytes=1)
    for digest in (first, second, first):
        with cache.dataset(digest) as folder:
            assert (folder / "index.json").is_file()


def test_torn_unpacking_is_cleared_away(store: LocalStore, tmp_path: Path) -> None:
    digest = put_archive(store, tmp_path / "in", 1)
    cache = cache_of(store, tmp_path)
    torn = cache.folder / f".{digest}.abc"
    torn.mkdir(parents=True)
    with cache.dataset(digest):
        assert not torn.exists()


@BOTH_STORES
def test_archive_that_is_gone_is_named(any_store: BlobStore, tmp_path: Path) -> None:
    digest = "0" * 64
    with pytest.raises(InputGone, match=digest), cache_of(any_store, tmp_path).dataset(digest):
        pass


def test_archive_whose_bytes_changed_is_not_used(store: LocalStore, tmp_path: Path) -> None:
    digest = put_archive(store, tmp_path / "in", 1)
    path = store.path(digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(InputGone), cache_of(store, tmp_path).dataset(digest):
        pass


@BOTH_STORES
def test_staged_spec_holds_only_paths(any_store: BlobStore, tmp_path: Path) -> None:
    weights, recipe = any_store.put_bytes(b"weights").digest, any_store.put_bytes(b"{}").digest
    files = {"student.safetensors": weights, "recipe.json": recipe}
    inputs = {"dataset": {"archive": put_archive(any_store, tmp_path / "in", 1)}, "teacher": files, "inherit": files}
    spec = JobSpec(
        name="x",
        teacher=TeacherFromJob(job=JOB, allow_unfit=True),
        student=FCOS(inherit=FromJob(job=JOB)),
        dataset="ds_" + "0" * 32,
        methods=(FGD(),),
    )
    folder = tmp_path / "work"
    folder.mkdir()
    with staged(spec, inputs, folder, cache_of(any_store, tmp_path)) as file:
        read = JobSpec.model_validate_json(file.read_bytes())
        assert isinstance(read.teacher, TeacherFromPath)
        assert read.teacher.allow_unfit
        assert isinstance(read.student.inherit, FromPath)
        assert isinstance(read.dataset, FromPath)
        assert (Path(read.teacher.path) / "student.safetensors").read_bytes() == b"weights"
        assert (Path(read.student.inherit.path) / "recipe.json").read_bytes() == b"{}"
        assert (Path(read.dataset.path) / "index.json").is_file()
        assert read.but(teacher=spec.teacher, student=spec.student, dataset=spec.dataset) == spec


def test_each_of_several_teachers_has_a_folder_of_its_own(store: LocalStore, tmp_path: Path) -> None:
    archive = put_archive(store, tmp_path / "in", 1)
    files = {name: store.put_bytes(name.encode()).digest for name in ("cells", "big-one", "")}
    inputs = {
        "dataset": {"archive": archive, "index": "0" * 64},
        **{f"teachers/{name}" if name else "teacher": {"recipe.json": digest} for name, digest in files.items()},
    }
    spec = JobSpec(
        name="a job",
        teacher=TeacherFromJob(job=JOB),
        teachers={"cells": TeacherFromJob(job=JOB, allow_unfit=True), "big-one": TeacherFromModel(model=MODEL)},
        student=FCOS(),
        dataset="ds_" + "0" * 32,
        methods=(FGD(), FGD(teacher="cells"), FGD(teacher="big-one")),
    )
    folder = tmp_path / "work"
    folder.mkdir()
    with staged(spec, inputs, folder, cache_of(store, tmp_path)) as file:
        read = JobSpec.model_validate_json(file.read_bytes())
        for name, ref in read.teacher_refs().items():
            assert isinstance(ref, TeacherFromPath)
            assert (Path(ref.path) / "recipe.json").read_text() == name
            assert ref.allow_unfit == (name == "cells")
        assert read.but(teacher=spec.teacher, teachers=spec.teachers, dataset=spec.dataset) == spec


def test_staged_files_are_not_copied_on_one_disk(store: LocalStore, tmp_path: Path) -> None:
    digest = store.put_bytes(b"weights").digest
    staging.link(store.path(digest), tmp_path / "linked")
    assert (tmp_path / "linked").samefile(store.path(digest))


@BOTH_STORES
def test_whole_checkpoint_is_staged_and_a_torn_one_is_not(any_store: BlobStore, tmp_path: Path) -> None:
    saved = tmp_path / "saved.pt"
    saved.write_bytes(b"checkpoint")
    any_store.put_object("jobs/x/a1/ckpt-1.pt", saved)
    sha256 = hashlib.sha256(b"checkpoint").hexdigest()
    for name in ("good", "torn", "gone"):
        (tmp_path / name).mkdir()
    assert stage_checkpoint(any_store, "jobs/x/a1/ckpt-1.pt", sha256, tmp_path / "good") is not None
    assert stage_checkpoint(any_store, "jobs/x/a1/ckpt-1.pt", "0" * 64, tmp_path / "torn") is None
    assert stage_checkpoint(any_store, "jobs/x/a1/ckpt-2.pt", sha256, tmp_path / "gone") is None


def test_older_checkpoint_can_follow_a_torn_one_in_the_same_folder(store: LocalStore, tmp_path: Path) -> None:
    for step, content in ((1, b"old"), (2, b"new")):
        (tmp_path / "saved.pt").unlink(missing_ok=True)
        (tmp_path / "saved.pt").write_bytes(content)
        store.put_object(f"jobs/x/a1/ckpt-{step}.pt", tmp_path / "saved.pt")
    work = tmp_path / "work"
    work.mkdir()
    assert stage_checkpoint(store, "jobs/x/a1/ckpt-2.pt", "0" * 64, work) is None
    file = stage_checkpoint(store, "jobs/x/a1/ckpt-1.pt", hashlib.sha256(b"old").hexdigest(), work)
    assert file is not None
    assert file.read_bytes() == b"old"


def test_work_folder_is_empty_at_first_and_gone_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "work" / "job_x" / "a1").mkdir(parents=True)
    (tmp_path / "work" / "job_x" / "a1" / "rest").touch()
    with work_folder(tmp_path, "job_x", 1) as folder:
        assert not list(folder.iterdir())
        (folder / "out").mkdir()
    assert not (tmp_path / "work" / "job_x").exists()


def test_work_of_a_worker_that_died_is_cleared_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    died = tmp_path / "work" / "job_x" / "a1"
    died.mkdir(parents=True)
    died.with_suffix(".lock").touch()
    with work_folder(tmp_path, "job_y", 1) as living:
        staging.clear_stale_work(tmp_path)
        assert living.is_dir()
    assert not died.parent.exists()
    assert not list((tmp_path / "work").iterdir())


def test_disk_without_room_for_a_data_set_is_the_host_s_trouble(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put_archive(store, tmp_path / "in", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError) as caught, cache_of(store, tmp_path).dataset(digest):
        pass
    assert caught.value.errno == errno.ENOSPC


def test_a_store_that_does_not_answer_is_not_taken_for_a_torn_checkpoint(tmp_path: Path) -> None:
    class Away(LocalStore):
        def local_object(self, key: str, scratch: Path | None = None) -> Any:
            raise StoreAway("no answer")

    with pytest.raises(StoreAway):
        stage_checkpoint(Away(tmp_path), "jobs/x/a1/ckpt-1.pt", "0" * 64, tmp_path)


@pytest.mark.parametrize("harm", ["a flipped byte", "truncated", "empty"])
def test_a_checkpoint_harmed_on_disk_is_not_staged(store: LocalStore, tmp_path: Path, harm: str) -> None:
    content = bytearray(b"checkpoint" * 1000)
    (tmp_path / "c.pt").write_bytes(content)
    store.put_object("jobs/x/a1/ckpt-1.pt", tmp_path / "c.pt")
    sha256 = hashlib.sha256(content).hexdigest()
    content[5000] ^= 1
    harmed = {"a flipped byte": bytes(content), "truncated": bytes(content[:4000]), "empty": b""}[harm]
    store.object_path("jobs/x/a1/ckpt-1.pt").write_bytes(harmed)
    work = tmp_path / "staged"
    work.mkdir()
    assert stage_checkpoint(store, "jobs/x/a1/ckpt-1.pt", sha256, work) is None


def test_a_question_is_staged_with_paths_and_nothing_else_of_it_changes(store: LocalStore, tmp_path: Path) -> None:
    question = FindStudent(
        dataset="ds_" + "0" * 32, teacher=TeacherFromJob(job=JOB), latency_budget_ms=7.5, runtime="torch", threads=3
    )
    weights = store.put_bytes(b"weights").digest
    inputs = {"dataset": {"archive": put_archive(store, tmp_path, 9)}, "teacher": {"student.safetensors": weights}}
    work = tmp_path / "work"
    work.mkdir()
    with staged_question(question, inputs, work, cache_of(store, tmp_path)) as file:
        found = FindStudent.model_validate_json(file.read_bytes())
        assert isinstance(found.dataset, FromPath)
        assert (Path(found.dataset.path) / "index.json").is_file()
        assert isinstance(found.teacher, TeacherFromPath)
        assert (Path(found.teacher.path) / "student.safetensors").read_bytes() == b"weights"
        assert found.but(dataset=question.dataset, teacher=question.teacher) == question
