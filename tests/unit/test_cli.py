"""The command, as a person types it, against a real HTTP server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from PIL import Image

import fgd as fgd_package
from fgd import version
from fgd.cli import connection, facts, options, studies
from fgd.cli.main import main
from fgd.cli.reports import report_lines
from fgd.client import DEFAULT_URL, BoardRow, Dataset, Job, JobReport, Model
from fgd.exported import MAX_AP_LOSS
from fgd.process import children
from tests.unit.http_fake import Answer, Asked, Server, closed_port, job_json, problem, serving
from tests.unit.mlflow_fake import FakeMlflow

JOB = job_json()["id"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Command(Protocol):
    def __call__(self, *arguments: str, url: str | None = None, stdin: str = "", **env: str) -> Ended: ...


@pytest.fixture
def fgd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: what is loaded once serves all tests."""
    for name in [name for name in os.environ if name.startswith("FGD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def type_in(*arguments: str, url: str | None = None, stdin: str = "", **env: str) -> Ended:
        for name, value in (({"FGD_URL": url} if url else {}) | env).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["fgd", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return type_in


COMMANDS = [
    [],
    ["serve"],
    ["worker"],
    ["demo"],
    ["train"],
    ["plan"],
    ["parity"],
    ["evaluate"],
    ["predict"],
    ["report"],
    ["export"],
    ["backup"],
    ["restore"],
    ["doctor"],
    ["workers"],
    ["dataset"],
    *(["dataset", name] for name in ("add", "upload", "list", "show", "report", "change", "delete")),
    ["job"],
    *(
        ["job", name]
        for name in ("submit", "spec", "plan", "list", "table", "show", "watch", "events", "cancel", "logs", "metrics")
    ),
    *(["job", name] for name in ("report", "tensorboard", "mlflow")),
    *(["job", name] for name in ("pause", "resume", "stop", "attempts", "checkpoints", "pin", "change", "delete")),
    ["study"],
    *(["study", name] for name in ("submit", "list", "show", "watch", "extend", "retry", "pause", "resume", "cancel")),
    *(["study", name] for name in ("change", "delete")),
    ["model"],
    *(["model", name] for name in ("add", "upload", "promote", "list", "show", "change", "delete")),
    *([noun, name] for noun in ("evaluation", "exported", "prediction") for name in ("list", "show", "delete")),
    ["artifact"],
    *(["artifact", name] for name in ("list", "download")),
]


def test_every_command_explains_itself() -> None:
    code = f"""
import contextlib, io, sys
from fgd.cli.main import app
for words in {COMMANDS!r}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        app([*words, "--help"], prog_name="fgd")
    assert "Usage" in said.getvalue(), words
    assert len(said.getvalue().splitlines()) > 5, words
assert not {{"torch", "httpx", "sqlalchemy", "celery"}} & set(sys.modules), "help loads too much"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_help_tells_the_exit_codes_and_the_environment(fgd: Command) -> None:
    said = fgd("--help").out
    assert all(word in said for word in ("FGD_URL", "FGD_API_KEY", "130", "no service answers"))


def test_a_mistyped_command_is_answered_with_the_right_one(fgd: Command) -> None:
    done = fgd("job", "sumbit")
    assert done.code == 2
    assert "submit" in done.err


def test_a_job_is_submitted_from_a_file_or_from_standard_input(fgd: Command, server: Server, tmp_path: Path) -> None:
    server.routes[("POST", "/v1/jobs")] = Answer(201, job_json("queued"))
    (tmp_path / "spec.json").write_text('{"name": "cells"}')
    for done in (
        fgd("job", "submit", str(tmp_path / "spec.json"), url=server.url),
        fgd("job", "submit", "-", url=server.url, stdin='{"name": "cells"}'),
    ):
        assert (done.code, done.out) == (0, f"{JOB}\n"), done.err
    assert [json.loads(asked.body) for asked in server.asked] == [{"name": "cells"}] * 2


@pytest.mark.parametrize(("text", "complaint"), [("{", "not JSON"), ("[]", "expected a spec"), (None, "No such file")])
def test_what_is_no_spec_is_refused_before_it_is_sent(
    fgd: Command, tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_text(text)
    done = fgd("job", "submit", str(path))
    assert done.code == 2
    assert complaint in done.err


def test_a_spec_may_be_yaml_or_options_or_both(fgd: Command, server: Server, tmp_path: Path) -> None:
    server.routes[("POST", "/v1/jobs")] = Answer(201, job_json("queued"))
    server.routes[("POST", "/v1/studies")] = Answer(201, STUDY)
    (tmp_path / "spec.yaml").write_text("name: cells\nschedule:\n  epochs: 12\n")
    epochs, kind = ["--set", "schedule.epochs=24"], ["--set", "methods.0.kind=fgd"]
    for words in (
        ["job", "submit", str(tmp_path / "spec.yaml"), *epochs],
        ["job", "submit", "--set", "name=cells", *epochs],
        ["job", "submit", "-", *kind],
        ["study", "submit", str(tmp_path / "spec.yaml"), "--arm", "fgd", "--seeds", "0", *epochs],
    ):
        done = fgd(*words, url=server.url, stdin="name: cells")
        assert done.code == 0, done.err
    longer = {"name": "cells", "schedule": {"epochs": 24}}
    arms = {"arms": [{"name": "fgd", "methods": [{"kind": "fgd"}]}], "seeds": [0]}
    assert [json.loads(asked.body) for asked in server.asked] == [
        longer, longer, {"name": "cells", "methods": [{"kind": "fgd"}]}, longer | arms,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ([], "give a file, - for standard input, or --set PATH=VALUE"),
        (["--set", "schedule.epoch=3"], "schedule has no field 'epoch'; the nearest is schedule.epochs"),
        (["{}/twice.yaml"], "twice.yaml:2: the key 'seed' stands twice"),
        (["{}/twice.yml", "--set", "seed=1"], "No such file"),
    ],
)
def test_a_wrong_spec_or_setting_says_where(fgd: Command, tmp_path: Path, typed: list[str], complaint: str) -> None:
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    done = fgd("job", "submit", *(word.format(tmp_path) for word in typed))
    assert done.code == 2
    assert complaint in done.err.replace("\n", "")


def test_a_refused_spec_shows_the_fields_and_no_traceback(fgd: Command, server: Server) -> None:
    errors = [{"pointer": "/schedule/epochs", "code": "too_small", "detail": "must be at least 1, got [b]0[/b]"}]
    server.routes[("POST", "/v1/jobs")] = problem(422, "invalid_spec", "1 field is wrong", errors=errors)
    done = fgd("job", "submit", "-", url=server.url, stdin="{}")
    assert done.code == 2
    assert "error: 1 field is wrong (422 invalid_spec)" in done.err
    assert "  /schedule/epochs: must be at least 1, got [b]0[/b]" in done.err
    assert "Traceback" not in done.err


def test_no_service_is_exit_code_three_and_says_what_to_do(fgd: Command) -> None:
    done = fgd("job", "list", "--url", f"http://127.0.0.1:{closed_port()}")
    assert done.code == 3
    assert "fgd serve" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "address", ["localhost:8000", "http://", "http://[", "http://h:port", "http://h:99999", "http://a b"]
)
def test_a_malformed_address_is_exit_code_two(fgd: Command, address: str) -> None:
    done = fgd("job", "list", "--url", address)
    assert done.code == 2
    assert f"error: {address!r} is not the address of a service" in done.err


def test_a_key_that_no_header_carries_is_exit_code_two_and_not_shown(fgd: Command, server: Server) -> None:
    done = fgd("job", "list", url=server.url, FGD_API_KEY="schlüssel")
    assert (done.code, "schl" in done.err) == (2, False)


def test_another_kind_of_server_is_exit_code_three(fgd: Command, server: Server) -> None:
    for answer in (Answer(200, b"<html>hello</html>"), Answer(404, b"<html>Not Found</html>"), Answer(403, b"no")):
        server.routes[("GET", "/v1/jobs")] = answer
        done = fgd("job", "list", url=server.url)
        assert (done.code, "check the address" in done.err) == (3, True)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("dataset upload ds_1 nowhere", "error: nowhere: no such folder or zip"),
        ("model add nowhere.pth --classes a", "error: nowhere.pth: no such file"),
        ("dataset add x hf://a/b/c", "error: hf://a/b/c: a data set is"),
        ("job submit nowhere.json", "error: nowhere.json: No such file or directory"),
    ],
)
def test_a_path_that_leads_nowhere_is_exit_code_two(fgd: Command, server: Server, typed: str, says: str) -> None:
    done = fgd(*typed.split(), url=server.url)
    assert done.code == 2
    assert says in done.err


def test_the_version_is_printed(fgd: Command) -> None:
    done = fgd("--version")
    assert (done.code, done.out) == (0, f"fgd {version.ours()}\n")


def test_a_broken_service_is_exit_code_three_and_names_the_request(fgd: Command, server: Server) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = problem(500, "internal", "a defect", request_id="req_7")
    done = fgd("job", "show", JOB, url=server.url)
    assert done.code == 3
    assert "req_7" in done.err


def test_a_missing_key_is_named_and_a_given_one_is_sent(fgd: Command, server: Server) -> None:
    def guarded(asked: Asked) -> Answer:
        if asked.headers.get("authorization") == "Bearer " + "k" * 40:
            return Answer(body={"items": [], "next": None})
        return problem(401, "unauthenticated", "this service needs a key")

    server.routes[("GET", "/v1/jobs")] = guarded
    without, given = fgd("job", "list", url=server.url), fgd("job", "list", url=server.url, FGD_API_KEY="k" * 40)
    assert (without.code, given.code) == (2, 0)
    assert "FGD_API_KEY" in without.err


def test_lists_are_tab_separated_for_the_next_program(fgd: Command, server: Server) -> None:
    progress = {"step": 5, "total_steps": 10, "epoch": 1, "epochs": 2, "values": {"val/ap": 12.34}}
    running = job_json("running", name="a [red]name[/red]", phase="training", progress=progress)
    server.routes[("GET", "/v1/jobs")] = Answer(body={"items": [running], "next": None})
    columns = fgd("job", "list", url=server.url).out.rstrip("\n").split("\t")
    assert columns[:5] == [JOB, "a [red]name[/red]", "running, training", "1/2", "12.3"]
    assert json.loads(fgd("job", "list", "--json", url=server.url).out)[0]["id"] == JOB


def test_watching_a_job_that_fails_ends_with_one_and_its_reason(fgd: Command, server: Server) -> None:
    failure = {"code": "loss_non_finite", "message": "step 3: loss is nan", "data": {}}
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("failed", failure=failure))
    server.routes[("GET", f"/v1/jobs/{JOB}/events")] = Answer(body={"items": [], "next_after": 0})
    done = fgd("job", "watch", JOB, url=server.url)
    assert done.code == 1
    assert "loss_non_finite: step 3: loss is nan" in " ".join(done.err.split())
    assert f"fgd job logs {JOB}" in done.err


def test_events_and_logs_are_printed_as_they_are(fgd: Command, server: Server) -> None:
    event = {"seq": 4, "type": "attempt_lost", "at": "2026-11-22T10:00:00Z", "attempt": 1, "data": {"reason": "lease"}}
    server.routes[("GET", f"/v1/jobs/{JOB}/events")] = lambda asked: Answer(
        body={"items": [event] if asked.query["after"] == "3" else [], "next_after": 4}
    )
    server.routes[("GET", f"/v1/jobs/{JOB}/logs")] = lambda asked: Answer(
        body=b"[red]caf\xc3\xa9" if asked.query["after_offset"] == "0" else b"",
        headers={"X-Next-Offset": "10", "X-Attempt": "1"},
    )
    said = fgd("job", "events", JOB, "--after", "3", url=server.url).out
    assert "attempt_lost  reason=lease" in said
    assert fgd("job", "logs", JOB, url=server.url).out == "[red]café"


def test_a_followed_log_goes_on_with_the_next_attempts_log(fgd: Command, server: Server) -> None:
    logs = {"1": b"one\n", "2": b"two\n"}
    asked_so_far = 0

    def log(asked: Asked) -> Answer:
        nonlocal asked_so_far
        asked_so_far += 1
        attempt = "1" if asked_so_far < 4 else "2"
        rest = logs[attempt][int(asked.query["after_offset"]) :]
        return Answer(body=rest, headers={"X-Next-Offset": "4", "X-Attempt": attempt})

    server.routes[("GET", f"/v1/jobs/{JOB}/logs")] = log
    server.routes[("GET", f"/v1/jobs/{JOB}")] = [Answer(body=job_json("running")), Answer(body=job_json("succeeded"))]
    assert fgd("job", "logs", JOB, "--follow", url=server.url).out == "one\ntwo\n"


def test_a_rejected_data_set_ends_with_one_and_its_defects(fgd: Command, server: Server) -> None:
    dataset = {"id": "ds_1", "name": "cells", "state": "rejected", "classes": None, "splits": None, "error": "no boxes"}
    defect = {"code": "image_missing", "file": "a.jpg", "message": "is not there", "action": "rejected"}
    report = {
        "ok": False,
        "format": "coco",
        "classes": ["cell"],
        "splits": {},
        "defect_counts": {"image_missing": 1},
        "defects": [defect],
    }
    server.routes[("POST", "/v1/datasets")] = Answer(202, dataset)
    server.routes[("GET", "/v1/datasets/ds_1")] = Answer(body=dataset)
    server.routes[("GET", "/v1/datasets/ds_1/report")] = Answer(body=report)
    done = fgd("dataset", "add", "cells", "some/folder", url=server.url)
    assert done.code == 1
    assert "a.jpg: is not there -> rejected" in done.out
    assert json.loads(server.asked[0].body)["path"] == str(Path.cwd() / "some/folder")


def test_what_would_steer_the_terminal_is_shown_and_not_obeyed(fgd: Command, server: Server) -> None:
    nasty, shown = "\x1b]0;owned\x07\x9b2J\u202e[bold]x", "\\u001b]0;owned\\u0007\\u009b2J\\u202e[bold]x"
    failure = {"code": "user_error", "message": nasty, "data": {}}
    job = job_json("failed") | {"name": nasty, "failure": failure}
    event = {"seq": 1, "type": "note:inherited", "at": "2026-01-01T00:00:00Z", "data": {"message": nasty}}
    server.routes[("GET", "/v1/jobs")] = Answer(body={"items": [job], "next": None})
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job)
    server.routes[("GET", f"/v1/jobs/{JOB}/events")] = lambda asked: Answer(
        body={"items": [] if asked.query["after"] == "1" else [event], "next_after": 1}
    )
    server.routes[("POST", "/v1/jobs")] = problem(422, "bad", nasty)
    for arguments in (["list"], ["list", "--json"], ["show", JOB], ["watch", JOB], ["events", JOB], ["submit", "-"]):
        done = fgd("job", *arguments, url=server.url, stdin="{}")
        assert shown in done.out + done.err, arguments
        assert not set("\x1b\x07\x9b\u202e") & set(done.out + done.err), arguments
    assert json.loads(fgd("job", "show", JOB, url=server.url).out)["name"] == nasty


def test_a_key_that_stands_twice_in_a_spec_is_refused_by_name(fgd: Command, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"seed": 1, "seed": 2}')
    done = fgd("job", "submit", str(tmp_path / "spec.json"), url="http://127.0.0.1:1")
    assert done.code == 2
    assert "the key 'seed' stands twice" in done.err


def artifacts(server: Server, sha256: str, content: bytes) -> None:
    item = {"id": "art_1", "name": "model.py", "size": len(content), "sha256": sha256, "media_type": "text/x-python"}
    server.routes[("GET", f"/v1/jobs/{JOB}/artifacts")] = Answer(body={"items": [item]})
    server.routes[("HEAD", "/v1/artifacts/art_1/content")] = Answer(body=content)
    server.routes[("GET", "/v1/artifacts/art_1/content")] = Answer(body=content)


def test_artifacts_are_downloaded_into_a_new_folder(fgd: Command, server: Server, tmp_path: Path) -> None:
    artifacts(server, hashlib.sha256(b"def build").hexdigest(), b"def build")
    done = fgd("artifact", "download", JOB, "--to", str(tmp_path / "new"), url=server.url)
    assert done.code == 0, done.err
    assert (tmp_path / "new/model.py").read_bytes() == b"def build"
    assert "ok" in done.out


def test_a_download_with_a_wrong_checksum_ends_with_one_and_leaves_nothing(
    fgd: Command, server: Server, tmp_path: Path
) -> None:
    artifacts(server, "0" * 64, b"def build")
    done = fgd("artifact", "download", JOB, "--to", str(tmp_path), url=server.url)
    assert done.code == 1
    assert "announced" in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_artifact_is_answered_with_those_there_are(fgd: Command, server: Server, tmp_path: Path) -> None:
    artifacts(server, "0" * 64, b"")
    done = fgd("artifact", "download", JOB, "--to", str(tmp_path), "--name", "best.pt", url=server.url)
    assert done.code == 2
    assert "it has: model.py" in done.err


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The programs that this process would have turned into."""
    programs: list[tuple[str, ...]] = []

    def become(*program: str) -> None:
        programs.append(program)
        raise SystemExit(0)

    monkeypatch.setattr(children, "become", become)
    return programs


@pytest.mark.parametrize(
    ("typed", "program"),
    [
        ("serve", "deploy serve"),
        ("serve --host h --port 0", "deploy serve --host=h --port=0"),
        ("serve --data-root a --data-root b", "deploy serve --data-root=a --data-root=b"),
        ("backup f --home h", "deploy backup --home=h -- f"),
        ("restore . --keep-store", "deploy restore --keep-store -- ."),
        ("doctor", "deploy doctor --older-than-h=24.0"),
        ("doctor --delete --older-than-h 2", "deploy doctor --delete --older-than-h=2.0"),
        ("worker", "worker"),
    ],
)
def test_what_is_the_services_becomes_its_program(
    fgd: Command, became: list[tuple[str, ...]], typed: str, program: str
) -> None:
    assert fgd(*typed.split()).code == 0
    assert became == [tuple(program.split())]


def test_training_options_reach_the_trainer_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"name": 3}')
    command = [sys.executable, "-m", "fgd.cli", "train", "spec.json", "--out", "out", "--events-fd", "1"]
    root = str(Path(fgd_package.__path__[0]).parent)
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '"type":"failed"' in done.stdout


PLAN = {
    "id": "plan_" + "0" * 32,
    "state": "measuring",
    "waiting_reason": "a worker takes it",
    "outline": {
        "levels": [{"name": "p3", "stride": 8, "student_channels": 64, "teacher_channels": 96}],
        "adapters": [
            {"method": "fgd", "level": "p3", "layer": "1x1 convolution", "from_channels": 64, "to_channels": 96}
        ],
        "sizes": [{"min_size": 240, "max_size": 320}],
        "images": {"train": 25, "val": 5},
        "images_per_step": 8,
        "steps_per_epoch": 3,
        "left_over": 1,
        "total_steps": 36,
        "evaluations": 12,
        "warnings": [{"pointer": "/schedule/scales", "message": "it has no effect"}],
    },
    "measured": None,
    "error": None,
}
MEASURED = {
    "device": "a processor", "threads": 2, "precision": "float32", "student_parameters": 11719752,
    "teacher_parameters": 22460000, "method_parameters": 0, "memory_peak_mb": 900.0, "cache_mb": 12.0,
    "s_per_step": 0.25, "steps": 5, "s_per_image_evaluated": 0.05, "s_to_start": 3.0, "hours": 2.5,
    "training_hours": 0.75, "checkpoint_mb": 180.0, "result_mb": 90.0, "disk_mb": 1260.0, "trainings_beside": 0,
}  # fmt: skip


def test_a_plan_is_told_at_once_and_its_cost_when_it_is_measured(server: Server, fgd: Command) -> None:
    server.routes["POST", "/v1/plans"] = Answer(202, PLAN)
    measured = PLAN | {"state": "measured", "measured": MEASURED}
    server.routes["GET", f"/v1/plans/{PLAN['id']}"] = [Answer(200, PLAN), Answer(200, measured)]

    ended = fgd("job", "plan", "-", url=server.url, stdin="{}")

    assert ended.code == 0, ended.err
    for words in (
        "36: 3 per epoch, of 8 images each, 1 left over", "p3: stride 8, student 64 channels, teacher 96",
        "fgd: 1x1 convolution on p3, 64 -> 96 channels", "/schedule/scales: it has no effect",
        "student 11.72 M, teacher 22.46 M", "2.5 h, 45 min of it training", "0.250 s per step", "1260 MiB",
    ):  # fmt: skip
        assert words in ended.out


def test_a_plan_that_failed_is_told_with_its_field(server: Server, fgd: Command) -> None:
    error = {"code": "user_error", "message": "too \x1b]0;small", "pointer": "/schedule/min_size"}
    server.routes["POST", "/v1/plans"] = Answer(200, PLAN | {"state": "failed", "error": error})

    ended = fgd("job", "plan", "-", url=server.url, stdin="{}")

    assert ended.code == 1
    assert "user_error: /schedule/min_size: too \\u001b]0;small" in ended.err


STUDENTS = {
    "latency_budget_ms": 15.0, "runtime": "onnxruntime", "threads": 2, "device": "a processor",
    "message": "FCOS R18, FPN 64 at 240 to 320 px is the largest that fits 15 ms", "fits": True, "missed_by_ms": None,
    "noise": 1.4, "waited_share": 0.31, "candidates": 600, "timed": 41, "seconds": 288.0, "trainings_beside": 0,
    "warnings": ["the machine had other work"],
    "teacher": {
        "title": "FCOS R50, FPN 256", "parameters": 32000000, "input": [240, 320],
        "latency": {"median_ms": 30.0, "p10_ms": 29.0, "p90_ms": 31.0, "min_ms": 28.0, "runs": 12, "waited_share": 0.0},
    },
    "rows": [
        {
            "title": "FCOS R18, FPN 64", "student": {"kind": "fcos"}, "size": {"min_size": 240, "max_size": 320},
            "input": [240, 320], "verdict": "fits", "parameters": 11900000, "gflops": 8.25, "mb": 48.0, "capacity": 9.9,
            "latency": {
                "median_ms": 13.7, "p10_ms": 13.1, "p90_ms": 18.2, "min_ms": 13.0, "runs": 60, "waited_share": 0.3
            },
            "levels": 5, "levels_shared": 5, "small_box_px": 11.2, "median_box_px": 40.0, "spec": {"name": "student"},
        }
    ],
}  # fmt: skip


def test_students_that_fit_a_latency_are_told_as_a_table(server: Server, fgd: Command) -> None:
    asked = {key: value for key, value in PLAN.items() if key != "outline"}
    server.routes["POST", "/v1/plans"] = Answer(202, asked)
    found = asked | {"state": "measured", "students": STUDENTS}
    server.routes["GET", f"/v1/plans/{PLAN['id']}"] = [Answer(200, asked | {"phase": "timing"}), Answer(200, found)]

    options = ["--budget", "15ms", "--dataset", "ds_1", "--teacher", "job_1", "--threads", "2", "--size", "240", "320"]
    ended = fgd("job", "plan", *options, url=server.url)

    assert ended.code == 0, ended.err
    for words in (
        "is the largest that fits 15 ms", "FCOS R18, FPN 64", "240x320", "13.7", "13.1-18.2", "fits", "11.9 M", "48.0",
        "11/40 px", "5 of 5", "41 of 600 students timed in 288 s", "teacher: FCOS R50, FPN 256 at 240x320, 30.0 ms",
        "other processes had the processor for 31%", "note: the machine had other work",
    ):  # fmt: skip
        assert words in ended.out, ended.out
    (sent,) = [json.loads(each.body) for each in server.asked if each.method == "POST"]
    assert sent == {
        "dataset": "ds_1", "teacher": {"job": "job_1"}, "latency_budget_ms": 15.0, "runtime": "onnxruntime",
        "threads": 2, "size": {"min_size": 240, "max_size": 320},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["job", "plan"], "give either a spec or --budget"),
        (["job", "plan", "x.json", "--budget", "5ms"], "give either a spec or --budget"),
        (["job", "plan", "--budget", "5ms"], "needs --dataset"),
        (["job", "plan", "--budget", "soon", "--dataset", "ds_1"], "write milliseconds, such as 15ms"),
        (["plan"], "give either a spec or --budget"),
        (["plan", "--budget", "5ms"], "needs --dataset"),
    ],
)
def test_a_latency_is_asked_for_with_a_data_set(fgd: Command, options: list[str], message: str) -> None:
    ended = fgd(*options, url="http://127.0.0.1:9")
    assert ended.code == 2
    assert message in ended.err


MODEL = "mdl_" + "0" * 32


def model_json(state: str, **more: object) -> dict[str, object]:
    return {"id": MODEL, "name": "m", "state": state, "classes": ["a", "b"], "from_the_future": 1, **more}


def test_what_of_a_folder_is_not_sent_is_printed(fgd: Command, server: Server, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.heic"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    done = fgd("dataset", "upload", "ds_1", str(tmp_path), "--no-wait", url=server.url)
    assert "not sent: 1 links, which are not followed; copy the files they lead to (cp -rL): link.jpg" in done.err
    assert "not sent: 1 pictures of an iPhone in HEIC" in done.err


def test_weights_are_uploaded_as_they_are_and_their_check_is_told(fgd: Command, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"weights" * 100_000)
    server.routes[("POST", "/v1/models")] = Answer(201, model_json("awaiting_upload"))
    content = f"/v1/models/{MODEL}/content"
    there = [Answer(204, headers={"Upload-Offset": offset, "Upload-Complete": "?0"}) for offset in ("0", "500")]
    server.routes[("HEAD", content)] = there
    server.routes[("PATCH", content)] = [problem(503, "database_busy", "try again", retryable=True), Answer(204)]
    misfit = model_json(
        "rejected", error="The file's head has 90 classes", report={"notes": ["a prefix was taken off"]}
    )
    server.routes[("GET", f"/v1/models/{MODEL}")] = Answer(body=misfit)

    done = fgd("model", "add", str(file), "--backbone", "resnet50", "--classes", "a, b", url=server.url)

    assert done.code == 1, done.err
    assert "The file's head has 90 classes" in done.out
    assert "a prefix was taken off" in done.out
    post, *sent = [asked for asked in server.asked if asked.method in ("POST", "PATCH")]
    detector = {"kind": "fcos", "backbone": "resnet50"}
    assert json.loads(post.body) == {"name": "net", "detector": detector, "classes": ["a", "b"]}
    assert [each.headers["upload-offset"] for each in sent] == ["0", "500"], "it goes on with what is not there yet"
    assert [each.body for each in sent] == [file.read_bytes(), file.read_bytes()[500:]]
    for each in sent:
        assert each.headers["upload-length"] == str(file.stat().st_size)
        digest = base64.b64decode(each.headers["repr-digest"].removeprefix("sha-256=:").removesuffix(":"))
        assert digest == hashlib.sha256(file.read_bytes()).digest()


def test_an_upload_of_weights_that_was_interrupted_goes_on_later(fgd: Command, server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"0123456789")
    content = f"/v1/models/{MODEL}/content"
    server.routes[("POST", "/v1/models")] = Answer(201, model_json("awaiting_upload"))
    server.routes[("HEAD", content)] = Answer(204, headers={"Upload-Offset": "4", "Upload-Complete": "?0"})
    server.routes[("PATCH", content)] = problem(507, "no_space", "the server's disk is full")
    server.routes[("GET", f"/v1/models/{MODEL}")] = Answer(body=model_json("verifying"))

    broken = fgd("model", "add", str(tmp_path / "net.pth"), "--classes", "a", url=server.url)
    assert (broken.code, broken.out) == (3, "")
    assert f"{MODEL}: uploading net.pth" in broken.err, "its id is what the upload goes on with"
    server.routes[("PATCH", content)] = Answer(204)
    done = fgd("model", "upload", MODEL, str(tmp_path / "net.pth"), "--no-wait", url=server.url)
    assert (done.code, done.out) == (0, f"{MODEL}  verifying\n"), done.err
    assert server.asked_for("PATCH", content)[-1].body == b"456789"


def test_classes_must_be_named_once_and_the_file_hold_something(fgd: Command, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    (tmp_path / "empty.pth").touch()
    assert "is empty" in fgd("model", "add", str(tmp_path / "empty.pth"), "--classes", "a").err
    assert "--classes" in fgd("model", "add", str(tmp_path / "net.pth")).err
    assert fgd("model", "add", str(tmp_path / "none.pth"), "--classes", "a").code == 2


def test_a_job_is_promoted_and_models_are_listed(fgd: Command, server: Server) -> None:
    detector = {"detector": {"kind": "fcos", "backbone": "resnet18"}}
    ready = model_json("ready", size=46_900_000, recipe=detector)
    server.routes[("POST", f"/v1/jobs/{JOB}/checkpoints/best/promote")] = Answer(201, ready)
    server.routes[("GET", "/v1/models")] = Answer(body={"items": [ready], "next": None})

    promoted = fgd("model", "promote", JOB, "--checkpoint", "best", url=server.url)
    assert (promoted.code, promoted.out) == (0, f"{MODEL}  ready\n"), promoted.err
    columns = fgd("model", "list", url=server.url).out.rstrip("\n").split("\t")
    assert columns == [MODEL, "m", "ready", "fcos resnet18", "2", "46.9"]


@pytest.mark.parametrize(("noun", "id"), [("job", "job_1"), ("dataset", "ds_1"), ("model", "mdl_1")])
def test_what_nothing_needs_is_deleted_and_what_something_needs_is_not(
    fgd: Command, server: Server, noun: str, id: str
) -> None:
    refusal = problem(409, f"{noun}_in_use", f"{id} is used by {JOB}")
    server.routes[("DELETE", f"/v1/{noun}s/{id}")] = [Answer(202, {"id": id}), refusal]
    done = fgd(noun, "delete", id, url=server.url)
    assert (done.code, done.out) == (0, f"{id}  deleted\n"), done.err
    refused = fgd(noun, "delete", id, url=server.url)
    assert refused.code == 2
    assert f"used by {JOB}" in refused.err


def test_name_priority_and_labels_of_a_job_are_changed(fgd: Command, server: Server) -> None:
    before = job_json("queued", metadata={"owner": "ada", "try": "1"})
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=before)
    server.routes[("PATCH", f"/v1/jobs/{JOB}")] = Answer(body=before)

    typed = ["--name", "b", "--priority", "7", "--metadata", "try=2", "--metadata", "x=", "--drop", "owner"]
    done = fgd("job", "change", JOB, *typed, url=server.url)
    assert (done.code, done.out) == (0, f"{JOB}  changed\n"), done.err
    alone = fgd("job", "change", JOB, "--priority", "0", "--json", url=server.url)
    assert json.loads(alone.out)["id"] == JOB
    bodies = [json.loads(asked.body) for asked in server.asked_for("PATCH", f"/v1/jobs/{JOB}")]
    assert bodies == [{"name": "b", "metadata": {"try": "2", "x": ""}, "priority": 7}, {"priority": 0}]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "nothing to change: give --name"),
        ("--drop size", "has no label size; it has owner"),
        ("--drop owner --metadata owner=b", "both name owner"),
        ("--metadata owner", "write KEY=VALUE"),
    ],
)
def test_a_change_that_cannot_be_is_refused_here(fgd: Command, server: Server, typed: str, says: str) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("queued", metadata={"owner": "ada"}))
    done = fgd("job", "change", JOB, *typed.split(), url=server.url)
    assert done.code == 2
    assert says in done.err
    assert not [asked for asked in server.asked if asked.method == "PATCH"]


@pytest.mark.parametrize(("noun", "id"), [("dataset", "ds_1"), ("model", "mdl_1")])
def test_data_sets_and_models_are_renamed(fgd: Command, server: Server, noun: str, id: str) -> None:
    path = f"/v1/{noun}s/{id}"
    server.routes[("PATCH", path)] = Answer(body={"id": id, "name": "b", "state": "ready"})
    done = fgd(noun, "change", id, "--name", "b", url=server.url)
    assert (done.code, done.out) == (0, f"{id}  changed\n"), done.err
    assert json.loads(fgd(noun, "change", id, "--name", "b", "--json", url=server.url).out)["name"] == "b"
    assert [json.loads(asked.body) for asked in server.asked_for("PATCH", path)] == [{"name": "b"}] * 2
    nameless = fgd(noun, "change", id, url=server.url)
    assert nameless.code == 2
    assert "--name" in nameless.err


@pytest.mark.parametrize("noun", ["dataset", "model"])
def test_data_sets_and_models_are_searched_by_name_and_state(fgd: Command, server: Server, noun: str) -> None:
    def found(asked: Asked) -> Answer:
        matches = (asked.query.get("name"), asked.query.get("state")) == ("*cells*", "ready")
        item = {"id": "x_1", "name": "my cells", "state": "ready"}
        return Answer(body={"items": [item] if matches else [], "next": None})

    server.routes[("GET", f"/v1/{noun}s")] = found
    assert fgd(noun, "list", "--name", "*cells*", "--state", "ready", url=server.url).out.startswith("x_1\tmy cells")
    assert fgd(noun, "list", url=server.url).out == ""


@pytest.mark.parametrize(
    ("verb", "answer", "says"),
    [
        ("pause", job_json("running", requested="pause"), "pausing"),
        ("pause", job_json("paused"), "paused"),
        ("resume", job_json("queued"), "queued"),
        ("stop", job_json("running", requested="stop"), "finishing early"),
        ("stop", job_json("queued", requested="stop"), "finishing early"),
    ],
)
def test_a_job_is_paused_resumed_and_finished_early(
    fgd: Command, server: Server, verb: str, answer: dict[str, Any], says: str
) -> None:
    server.routes[("POST", f"/v1/jobs/{JOB}/{verb}")] = Answer(202, body=answer)
    done = fgd("job", verb, JOB, url=server.url)
    assert (done.code, done.out) == (0, f"{JOB}  {says}\n")


def test_a_job_that_cannot_finish_early_says_why(fgd: Command, server: Server) -> None:
    server.routes[("POST", f"/v1/jobs/{JOB}/stop")] = problem(409, "nothing_to_keep", "it has no checkpoint")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("queued"))
    done = fgd("job", "stop", JOB, url=server.url)
    assert done.code == 2
    assert "it has no checkpoint (409 nothing_to_keep)" in done.err


def test_attempts_and_workers_are_listed(fgd: Command, server: Server) -> None:
    at = "2026-11-22T10:00:00Z"
    attempt = {
        "attempt": 1, "worker": "wrk_a", "host": "gpu-1", "device": "a GPU", "started_at": at, "finished_at": at,
        "outcome": "failed", "code": "trainer_killed", "reason": "killed", "exit": None, "signal": "SIGKILL",
        "steps_done": 40, "lost_steps": 7, "spec": {},
    }  # fmt: skip
    worker = {
        "id": "wrk_a", "host": "gpu-1", "live": True, "slots": 2, "free_slots": 1, "started_at": at, "last_beat": at,
        "devices": [{"name": "a GPU"}], "versions": {"torch": "2.14"}, "running": [{"job": JOB, "name": "cells"}],
    }  # fmt: skip
    server.routes[("GET", f"/v1/jobs/{JOB}/attempts")] = Answer(body={"items": [attempt]})
    server.routes[("GET", "/v1/workers")] = Answer(body={"items": [worker, {**worker, "complaint": "disk full"}]})
    row = fgd("job", "attempts", JOB, url=server.url).out.rstrip("\n").split("\t")
    assert [row[n] for n in (0, 1, 2, 5, 6, 7, 8, 9)] == [
        "1", "gpu-1", "a GPU", "failed", "SIGKILL", "40", "7", "trainer_killed: killed",
    ]  # fmt: skip
    first, second = (line.split("\t") for line in fgd("workers", url=server.url).out.splitlines())
    assert [first[n] for n in (0, 2, 3, 4, 5, 7)] == [
        "wrk_a", "ready", "1 of 2 free", "a GPU", "2.14", f"{JOB} (cells)",
    ]  # fmt: skip
    assert second[2] == "disk full"
    assert json.loads(fgd("workers", "--json", url=server.url).out)[1]["complaint"] == "disk full"


def test_the_table_of_jobs_shows_each_gain(fgd: Command, server: Server) -> None:
    line = {"id": JOB, "name": "a <b>", "state": "running", "created_at": "2026-01-01T00:00:00Z", "ap": 30.04}
    line |= {"methods": ["fgd", "pkd"], "control": "job_c", "control_ap": 31.0, "gain": -0.96}
    server.routes[("GET", "/v1/summaries")] = Answer(body={"items": [line], "total": 1, "states": {"running": 1}})

    done = fgd("job", "table", "--worse", "--sort", "gain", url=server.url)

    assert done.out.strip().split("\t") == [JOB, "a <b>", "running", "fgd, pkd", "30.0", "31.0", "-1.0"]
    (asked,) = server.asked_for("GET", "/v1/summaries")
    assert asked.query == {"limit": "50", "sort": "gain", "worse": "true"}


def test_images_on_which_student_and_control_differ_are_listed(fgd: Command, server: Server) -> None:
    counts = [
        {"role": role, "found": 3, "missed": missed, "false": 2} for role, missed in (("control", 4), ("student", 1))
    ]
    image = {"image_id": 7, "name": "a <b>.jpg", "boxes": 5, "apart": 3, "worse_by": -3, "counts": counts}
    networks = [{"role": "teacher", "reason": "it was not evaluated"}, {"role": "control", "reason": None}]
    table = {"job": JOB, "split": "test", "score": 0.5, "against": "control", "networks": networks, "items": [image]}
    path = f"/v1/jobs/{JOB}/detections"
    server.routes[("GET", path)] = Answer(body={**table, "worse": 2, "better": 9, "total": 1})

    done = fgd(
        "job", "detections", JOB, "--worse", "--class", "cat", "--score", "0.5", "--split", "test", url=server.url
    )

    assert done.out.strip().split("\t") == ["a <b>.jpg", "5", "3", "4, 2", "1, 2"]
    assert "teacher: it was not evaluated" in done.err
    assert "the student makes more mistakes than the control on 2 images, fewer on 9" in done.err
    (asked,) = server.asked_for("GET", path)
    assert asked.query == {
        "limit": "20", "split": "test", "class": "cat", "only": "worse", "score": "0.5", "offset": "0",
    }  # fmt: skip


def test_what_methods_look_at_is_drawn(fgd: Command, server: Server, tmp_path: Path) -> None:
    photo = {"position": 0, "name": "a <b>.jpg", "width": 64, "height": 32, "boxes": [[0, 0, 16, 32]], "jpeg": None}
    told = {"method": "fgd", "level": "p3", "shape": [1, 2], "low": 0.0, "high": 2.0, "by_magnitude": False}
    shown = [
        {**told, "name": "foreground", "network": None, "values": "//8="},
        {**told, "name": "spatial attention", "network": "teacher", "values": "/wA="},
        {**told, "name": "spatial attention", "network": "student", "values": "AP8="},
        {**told, "name": "channel attention", "network": "student", "shape": [2], "values": "AP8="},
    ]
    image = {"photo": 0, "size": [32, 64], "padded": [32, 128], "shown": shown}
    path = f"/v1/jobs/{JOB}/focus"
    steps = [{"step": n, "epoch": 1, "size": 9, "sha256": "a" * 64} for n in (0, 30)]
    server.routes[("GET", path)] = Answer(body={"items": steps})
    server.routes[("GET", f"{path}/30")] = Answer(body={"step": 30, "images": [image]})
    server.routes[("GET", f"{path}/photos")] = Answer(body={"photos": [photo]})
    assert fgd("job", "focus", JOB, url=server.url).out.splitlines() == ["0\t1\t9", "30\t1\t9"]

    file = tmp_path / "focus.png"
    done = fgd("job", "focus", JOB, "--out", str(file), url=server.url)

    assert done.out.strip() == f"{file}: spatial attention of fgd at p3 after step 30"
    with Image.open(file) as sheet:
        assert sheet.size == (3 * 320, 20 + 160)
        bright = [sum(sheet.getpixel((320 * place + 160, 100))) for place in (1, 2)]  # of the map's left half
    assert bright[0] > bright[1]
    refused = fgd("job", "focus", JOB, "--out", str(file), "--level", "p9", url=server.url)
    assert (refused.code, "--level p9: there are p3" in refused.err) == (2, True)


REPORT: dict[str, Any] = {
    "job": JOB, "name": "cells", "state": "succeeded", "dataset_name": "photos", "pending": 0,
    "networks": [{"role": "student", "name": "a <b>", "ap": 31.24, "parameters": 1200000, "bytes": 4800000}],
    "comparison": {
        "difference": {"value": 1.5, "low": None, "high": None},
        "difference_over_images": {"value": 1.5, "low": -0.25, "high": 3.0},
    },
}  # fmt: skip


def test_a_report_is_waited_for_and_written_as_json_or_as_a_page(fgd: Command, server: Server, tmp_path: Path) -> None:
    path = f"/v1/jobs/{JOB}/report"
    server.routes[("GET", path)] = [Answer(body={**REPORT, "pending": 2}), Answer(body=REPORT)]

    done = fgd("job", "report", JOB, "--split", "test", url=server.url)

    assert json.loads(done.out)["comparison"] == REPORT["comparison"]
    assert [asked.query for asked in server.asked_for("GET", path)] == [{"split": "test"}] * 2
    server.routes[("GET", path)] = [Answer(body={**REPORT, "pending": 2})]
    assert json.loads(fgd("report", JOB, "--no-wait", url=server.url).out)["pending"] == 2
    page = tmp_path / "report.html"
    server.routes[("GET", path)] = [
        Answer(body=REPORT),
        Answer(body="<!doctype html>é".encode(), headers={"Content-Type": "text/html; charset=utf-8"}),
    ]
    assert fgd("job", "report", JOB, "--html", str(page), url=server.url).out.strip() == str(page)
    assert page.read_text(encoding="utf-8") == "<!doctype html>é"
    lost = fgd("job", "report", JOB, "--html", str(tmp_path / "no/such.html"), url=server.url)
    assert (lost.code, "there is no folder" in lost.err) == (2, True)


def test_a_report_reads_like_this() -> None:
    measured = {"gflops": 3.46, "speeds": [{"batch": 8, "time": {"median_ms": 61.5, "p10_ms": 60.0, "p90_ms": 70.0}}]}
    whole = {**REPORT, "networks": [{**REPORT["networks"][0], **measured}]}
    assert list(report_lines(JobReport.model_validate(whole))) == [
        f"{JOB}  cells  succeeded, val images of photos",
        "student  a <b>  AP 31.2, 1,200,000 parameters, 4.8 MB, 3.5 GFLOPs, batch of 8: 61.5 ms (60.0 to 70.0)",
        "AP points above the control, over seeds: +1.50",
        "AP points above the control, over seeds and images: +1.50 (-0.25 to +3.00)",
    ]
    lonely = {**REPORT, "comparison": None, "control_request": {"command": "fgd job submit - <<'END'"}}
    assert list(report_lines(JobReport.model_validate(lonely)))[2:] == [
        "no control was run; this trains it:",
        "fgd job submit - <<'END'",
    ]


def test_a_failed_job_is_watched_to_its_advice(fgd: Command, server: Server) -> None:
    failure = {"code": "stalled", "message": "it hung", "advice": "lower `schedule.batch_size`", "retryable": True}
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("failed", failure=failure))
    server.routes[("GET", f"/v1/jobs/{JOB}/events")] = Answer(body={"items": [], "next_after": 0})
    assert "advice: lower `schedule.batch_size`" in fgd("job", "watch", JOB, url=server.url).err


def test_each_jobs_event_file_gets_a_folder_of_its_own(fgd: Command, server: Server, tmp_path: Path) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json(name="../a/b c"))
    server.routes[("GET", f"/v1/jobs/{JOB}/metrics/tensorboard")] = Answer(
        body=b"x", headers={"Content-Disposition": 'attachment; filename="events.out.tfevents.1.j"'}
    )
    done = fgd("job", "tensorboard", JOB, "--to", str(tmp_path / "tb"), url=server.url)
    assert done.code == 0, done.err
    (file,) = (tmp_path / "tb").rglob("*tfevents*")
    assert file.parent.name == f"_a_b_c-{JOB}"
    assert done.out.strip().endswith("events.out.tfevents.1.j")


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    server = FakeMlflow()
    try:
        yield server
    finally:
        server.close()


def test_an_ended_job_is_copied_to_mlflow_again_and_again_as_one_run(
    fgd: Command, server: Server, mlflow: FakeMlflow
) -> None:
    sha = hashlib.sha256(b"weights").hexdigest()
    artifact = {"id": "art_1", "name": "student.safetensors", "size": 7, "sha256": sha, "media_type": "x/y"}
    point = {"name": "ap", "split": "val", "step": 9, "value": 31.5, "at": "2026-11-22T10:00:00Z"}
    spec = {"schedule": {"epochs": 2}, "methods": []}
    server.routes |= {
        ("GET", f"/v1/jobs/{JOB}"): Answer(body=job_json("succeeded", spec=spec, metadata={"team": "x"})),
        ("GET", f"/v1/jobs/{JOB}/metrics"): Answer(body={"items": [point]}),
        ("GET", f"/v1/jobs/{JOB}/artifacts"): Answer(body={"items": [artifact]}),
        ("HEAD", "/v1/artifacts/art_1/content"): Answer(body=b"weights", headers={"ETag": f'"sha256-{sha}"'}),
        ("GET", "/v1/artifacts/art_1/content"): Answer(body=b"weights", headers={"ETag": f'"sha256-{sha}"'}),
        ("GET", f"/v1/jobs/{JOB}/report"): lambda asked: Answer(
            body=b"<!doctype html>"
            if "html" in asked.headers["accept"]
            else {"job": JOB, "name": "cells", "state": "succeeded", "versions": {"torch": "9.9"}}
        ),
    }
    for _ in range(2):
        done = fgd("job", "mlflow", JOB, url=server.url, MLFLOW_TRACKING_URI=mlflow.url, MLFLOW_TRACKING_TOKEN="t")
        assert (done.code, done.out) == (0, f"{mlflow.url}/#/experiments/1/runs/run0\n"), done.err
    run = mlflow.the_run()
    assert run["params"] == {"schedule.epochs": "2", "methods": "[]", "versions.torch": "9.9"}
    assert run["metrics"] == {("val/ap", 9, 31.5, 1795341600000)}
    assert run["info"]["status"] == "FINISHED"
    assert run["tags"].items() >= {"label.team": "x", "fgd.url": f"{server.url}/#/jobs/{JOB}"}.items()
    there = mlflow.files_of_the_run()
    assert there.keys() == {"student.safetensors", "report.html", "report.json", "spec.json"}
    assert there["student.safetensors"] == b"weights"
    assert len(server.asked_for("GET", "/v1/artifacts/art_1/content")) == 1, "what is there is not sent again"
    assert {asked.headers["authorization"] for asked in mlflow.asked} == {"Bearer t"}


def test_what_keeps_a_job_from_mlflow_is_one_line_and_an_exit_code(
    fgd: Command, server: Server, mlflow: FakeMlflow
) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("running"))

    def copied(address: str) -> Ended:
        return fgd("job", "mlflow", JOB, "--tracking-uri", address, url=server.url)

    running = copied(mlflow.url)
    assert (running.code, "is running; copy it once it has ended" in running.err) == (2, True)
    wrong = copied("http://ada:secret@host")
    assert (wrong.code, "--tracking-uri: it is http(s)://host:port" in wrong.err) == (2, True)
    assert "secret" not in wrong.err
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("failed"))
    away = copied(f"http://127.0.0.1:{closed_port()}")
    assert (away.code, "the MLflow server does not answer" in away.err) == (3, True)
    mlflow.instead = Answer(401)
    refused = copied(mlflow.url)
    assert (refused.code, "check MLFLOW_TRACKING_USERNAME" in refused.err) == (2, True)


def test_a_jobs_export_is_downloaded_before_it_becomes_onnx(
    fgd: Command, server: Server, tmp_path: Path, became: list[tuple[str, ...]]
) -> None:
    files = {"student.safetensors": b"w", "recipe.json": b"{}", "manifest.json": b"{}", "best.safetensors": b"b"}
    items = []
    for name, content in files.items():
        sha256 = hashlib.sha256(content).hexdigest()
        items.append({"id": name, "name": name, "size": len(content), "sha256": sha256, "media_type": "x/y"})
        for method in ("HEAD", "GET"):
            server.routes[(method, f"/v1/artifacts/{name}/content")] = Answer(body=content)
    server.routes[("GET", f"/v1/jobs/{JOB}/artifacts")] = Answer(body={"items": items})
    done = fgd("export", JOB, "--here", "--onnx", str(tmp_path / "a.onnx"), "--size", "64", "96", url=server.url)
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / JOB).iterdir()} == files.keys() - {"best.safetensors"}
    best = fgd("export", JOB, "--here", "--best", "--onnx", str(tmp_path / "best" / "a.onnx"), url=server.url)
    assert best.code == 0, best.err
    assert (tmp_path / "best" / JOB / "best.safetensors").exists()
    server.routes[("GET", f"/v1/jobs/{JOB}/artifacts")] = Answer(body={"items": items[:3]})
    last = fgd("export", JOB, "--here", "--best", "--onnx", str(tmp_path / "last" / "a.onnx"), url=server.url)
    assert last.code == 0, "the last weights are the best"
    assert (tmp_path / "last" / JOB / "student.safetensors").exists()
    module, *arguments = became[0]
    assert module == "fgd.export"
    assert arguments[-4:] == ["64", "96", "--", str(tmp_path / JOB)]


def test_what_is_shown_on_a_screen_names_what_it_is_made_of() -> None:
    spec = {"student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}, "teacher": {"model": "mdl_1"},
            "methods": [{"kind": "fgd"}], "dataset": "ds_1"}  # fmt: skip
    failure = {"code": "stalled", "message": "it hung", "advice": "look"}
    job = dict(facts.of_job(Job.model_validate(job_json("failed", spec=spec, failure=failure, metadata={"a": "b"}))))
    assert (job["failure"], job["student"]) == ("stalled: it hung", "fcos resnet18 pyramid of 64 channels")
    assert (job["teacher"], job["methods"], job["metadata"]) == ("model mdl_1", "fgd", "a=b")
    splits = {"train": {"images": 3, "boxes": 4}}
    names = tuple(f"c{n}" for n in range(20))
    dataset = Dataset(id="ds_1", name="d", state="ready", classes=names, splits=splits)
    assert dict(facts.of_dataset(dataset))["train"] == "3 images, 4 boxes"
    assert dict(facts.of_dataset(dataset))["classes"].endswith("c11 and 8 more")
    model = dict(facts.of_model(Model.model_validate(model_json("rejected", error="no"))))
    assert (model["error"], model["classes"]) == ("no", "2: a, b")


@pytest.mark.parametrize(("noun", "id"), [("job", JOB), ("dataset", "ds_1"), ("model", MODEL)])
def test_every_show_takes_json(fgd: Command, server: Server, noun: str, id: str) -> None:
    shown = {"job": job_json(), "dataset": {"id": id, "name": "d", "state": "ready"}, "model": model_json("ready")}
    server.routes[("GET", f"/v1/{noun}s/{id}")] = Answer(body=shown[noun])
    assert json.loads(fgd(noun, "show", id, "--json", url=server.url).out)["id"] == id


def test_the_address_in_the_help_is_the_clients_own() -> None:
    assert connection.URL == DEFAULT_URL


EVALUATION = {
    "id": "evl_" + "0" * 32, "state": "pending", "waiting_reason": None, "job": JOB, "network": "teacher",
    "dataset": "ds_1", "split": "test", "min_size": 64, "max_size": 64, "files": [], "error": None,
    "classes": {"shared": ["cat"], "renamed": {}, "only_dataset": ["c\x1bow"], "only_network": []},
    "result": None,
}  # fmt: skip
FIGURES = {
    **dict.fromkeys(("ap", "ap50", "ap75", "ap_s", "ap_m", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l"), 41.53),
    "ap_l": None, "images": 3, "undecodable": 0, "boxes": 4, "detections": 9, "precision_recall": [], "confusion": None,
    "per_class": [{"name": "cat", "boxes": 4, "ap": 41.53}], "device": "a processor", "seconds": 1.5,
}  # fmt: skip


def test_an_evaluation_is_waited_for_and_told(fgd: Command, server: Server, tmp_path: Path) -> None:
    content, path = b"detections", f"/v1/evaluations/{EVALUATION['id']}"
    file = {
        "role": "detections", "name": "detections.npz", "size": len(content), "media_type": "application/zip",
        "sha256": hashlib.sha256(content).hexdigest(), "url": f"{path}/detections",
    }  # fmt: skip
    server.routes["POST", "/v1/evaluations"] = Answer(202, EVALUATION)
    server.routes["GET", path] = Answer(200, EVALUATION | {"state": "succeeded", "result": FIGURES, "files": [file]})
    server.routes["HEAD", f"{path}/detections"] = Answer(200, content)
    server.routes["GET", f"{path}/detections"] = Answer(200, content)

    done = fgd("evaluate", JOB, "--teacher", "--split", "test", "--detections", str(tmp_path), url=server.url)

    assert done.code == 0, done.err
    (asked,) = server.asked_for("POST", "/v1/evaluations")
    assert json.loads(asked.body) == {"job": JOB, "network": "teacher", "split": "test", "device": "auto"}
    assert "ap50\t41.5\n" in done.out
    assert "ap_l\t-\n" in done.out
    assert "cat\t4\t41.5\n" in done.out
    assert "does not know c\\u001bow" in done.err
    assert (tmp_path / "detections.npz").read_bytes() == content


@pytest.mark.parametrize(
    ("noun", "more", "what"),
    [
        ("evaluation", {"result": FIGURES}, "teacher on test of ds_1, AP 41.5"),
        ("exported", {"format": "onnx", "network": "student"}, "student, last weights, onnx"),
        ("prediction", {"networks": [{"role": "student"}, {"role": "control"}]}, "student, control"),
    ],
)
def test_what_workers_worked_out_is_listed_shown_and_deleted(
    fgd: Command, server: Server, noun: str, more: dict[str, Any], what: str
) -> None:
    found = EVALUATION | {"id": "x_1", "created_at": "2026-11-30T10:00:00Z", "state": "succeeded"} | more
    path = f"/v1/{noun.removesuffix('ed')}s"
    server.routes[("GET", path)] = Answer(body={"items": [found], "next": None})
    server.routes[("GET", f"{path}/x_1")] = Answer(body=found)
    server.routes[("DELETE", f"{path}/x_1")] = Answer(204)
    listed = fgd(noun, "list", url=server.url)
    assert listed.out.split("\t")[:4] == ["x_1", "succeeded", JOB, what], listed.err
    assert json.loads(fgd(noun, "show", "x_1", url=server.url).out)["id"] == "x_1"
    assert fgd(noun, "delete", "x_1", url=server.url).out == "x_1  deleted\n"


@pytest.mark.parametrize(
    ("noun", "filters"),
    [
        ("evaluation", {"state": "failed", "job": JOB, "model": MODEL, "dataset": "ds_1"}),
        ("exported", {"state": "failed", "job": JOB, "model": MODEL, "dataset": "ds_1"}),
        ("prediction", {"state": "failed", "job": JOB, "model": MODEL}),
    ],
)
def test_what_workers_worked_out_is_searched(fgd: Command, server: Server, noun: str, filters: dict[str, str]) -> None:
    def found(asked: Asked) -> Answer:
        matches = {name: asked.query.get(name) for name in filters} == filters
        return Answer(
            body={
                "items": [EVALUATION | {"id": "x_1", "networks": [], "format": "onnx"}] if matches else [],
                "next": None,
            }
        )

    server.routes[("GET", f"/v1/{noun.removesuffix('ed')}s")] = found
    options = [word for name, value in filters.items() for word in (f"--{name}", value)]
    assert fgd(noun, "list", *options, url=server.url).out.startswith("x_1\t")
    assert fgd(noun, "list", url=server.url).out == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("fgd jo", "job"), ("fgd job can", "cancel"), ("fgd evaluation ", "delete"), ("fgd job show job_", JOB)],
)
def test_the_shell_completes_commands_and_ids_of_jobs(server: Server, typed: str, offered: str) -> None:
    server.routes[("GET", "/v1/jobs")] = Answer(body={"items": [job_json()], "next": None})
    asked = {"_FGD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed, "FGD_URL": server.url}
    program = [sys.executable, "-m", "fgd.cli"]
    done = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert offered in done.stdout, done.stderr


def test_without_a_service_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGD_URL", f"http://127.0.0.1:{closed_port()}")
    assert options.job_ids("job_") == []


def test_an_evaluation_that_failed_ends_with_its_reason(fgd: Command, server: Server) -> None:
    error = {"code": "user_error", "message": "too small", "pointer": "/min_size"}
    server.routes["POST", "/v1/evaluations"] = Answer(202, EVALUATION | {"state": "failed", "error": error})

    done = fgd("evaluate", MODEL, "--dataset", "ds_1", url=server.url)

    assert done.code == 1
    assert "user_error: /min_size: too small" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"), [(("ds_1",), "is the id of a data set"), ((MODEL, "--best"), "--best")]
)
def test_what_is_no_network_is_refused_at_once(
    fgd: Command, server: Server, arguments: tuple[str, ...], words: str
) -> None:
    done = fgd("evaluate", *arguments, url=server.url)
    assert (done.code, server.asked) == (2, [])
    assert words in done.err


def test_an_export_is_written_by_a_worker_and_fetched_with_its_usage(
    fgd: Command, server: Server, tmp_path: Path
) -> None:
    path, contents = "/v1/exports/exp_1", {"content": b"onnx", "usage": b"program"}
    result = {
        "format": "onnx", "size": [64, 96], "batch": None, "opset": 18, "compared_on": "2 pictures of the data set",
        "detections": 7, "box_px": 1e-5, "score": 1e-6, "threads": 2, "torch_ms": 40.0, "onnxruntime_ms": 20.0,
    }  # fmt: skip
    made = {"id": "exp_1", "state": "succeeded", "format": "onnx", "result": result, "files": []}
    for role, content in contents.items():
        sha256 = hashlib.sha256(content).hexdigest()
        made["files"].append(  # type: ignore[attr-defined]
            {"role": role, "name": role, "size": len(content), "sha256": sha256, "url": f"{path}/{role}"}
        )
        server.routes["HEAD", f"{path}/{role}"] = server.routes["GET", f"{path}/{role}"] = Answer(200, content)
    server.routes["POST", "/v1/exports"] = Answer(200, made)

    onnx = str(tmp_path / "a.onnx")
    done = fgd("export", MODEL, "--onnx", onnx, "--batch", "dynamic", "--size", "64", "96", url=server.url)

    assert done.code == 0, done.err
    asked = json.loads(server.asked_for("POST", "/v1/exports")[0].body)
    assert asked == {"model": MODEL, "format": "onnx", "batch": "dynamic", "opset": 18, "size": [64, 96]}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.onnx": b"onnx", "a_onnx.py": b"program"}
    assert "7 detections on 2 pictures of the data set" in done.out


LATENCY = {"p10_ms": 1.0, "p90_ms": 40.0, "min_ms": 1.0, "runs": 9, "waited_share": 0.0}
INT8 = {
    "calibration_images": 64, "images": 73, "undecodable": 0, "max_ap_loss": 1.0, "ap_loss": 0.25, "int8_weights": 9,
    "float32": {"ap": 41.5, "ap50": 66.0, "ap75": 45.0, "bytes": 47_000_000, "latency": LATENCY | {"median_ms": 30.0},
                "per_class": [{"name": "cell", "boxes": 4, "ap": 41.5}]},
    "int8": {"ap": 41.25, "ap50": 66.0, "ap75": 45.0, "bytes": 12_000_000, "latency": LATENCY | {"median_ms": 12.0},
             "per_class": [{"name": "cell", "boxes": 4, "ap": 41.25}]},
    "left_out": [{"layers": "backbone.fpn", "weights": 1234, "ap_gain": 2.5}], "trials": [],
    "device": "a processor", "threads": 1,
}  # fmt: skip


def test_an_export_in_int8_shows_what_it_cost_and_keeps_the_report(
    fgd: Command, server: Server, tmp_path: Path
) -> None:
    report = b'{"format": "onnx-int8"}'
    result = {
        "format": "onnx-int8", "size": [64, 96], "batch": 1, "opset": 18, "compared_on": "2 pictures of the data set",
        "detections": 7, "box_px": 1e-5, "score": 1e-6, "threads": 1, "torch_ms": 40.0, "onnxruntime_ms": 20.0,
        "int8": INT8,
    }  # fmt: skip
    path = "/v1/exports/exp_1/report"
    file = {"role": "report", "name": "model_int8.json", "size": len(report), "url": path}
    file["sha256"] = hashlib.sha256(report).hexdigest()
    made = {"id": "exp_1", "state": "succeeded", "format": "onnx-int8", "result": result, "files": [file]}
    server.routes["HEAD", path] = server.routes["GET", path] = Answer(200, report)
    server.routes["POST", "/v1/exports"] = Answer(200, made)

    options = ("--int8", "--max-ap-loss", "1", "--dataset", "ds_1")
    done = fgd("export", JOB, "--onnx", str(tmp_path / "a.onnx"), *options, url=server.url)

    assert done.code == 0, done.err
    asked = json.loads(server.asked_for("POST", "/v1/exports")[0].body)
    assert asked == {
        "job": JOB, "format": "onnx-int8", "max_ap_loss": 1.0, "dataset": "ds_1", "batch": 1, "opset": 18,
    }  # fmt: skip
    assert (tmp_path / "a_int8.json").read_bytes() == report
    said = " ".join(done.out.split())
    assert "AP 41.50 41.25" in said
    assert "MB 47.0 12.0" in said
    assert "2.50 times as fast on 1 thread of a processor; loses 0.25 AP, of 1 allowed" in said
    assert "float32: backbone.fpn, 1234 weights; alone they win 2.50 AP" in said


def test_an_export_in_int8_on_this_machine_passes_its_options_on(
    fgd: Command, tmp_path: Path, became: list[tuple[str, ...]]
) -> None:
    options = ("--int8", "--dataset", "data", "--max-ap-loss", "2")
    done = fgd("export", str(tmp_path), "--onnx", "a.onnx", *options)
    assert done.code == 0, done.err
    (arguments,) = became
    assert " --dataset data --int8 --max-ap-loss 2.0 -- " in " ".join(arguments)
    assert str(MAX_AP_LOSS) in fgd("export", "--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((JOB, "--image", "a.png"), "--here"),
        ((MODEL, "--here"), "--here"),
        ((JOB, "--here", "--teacher"), "--teacher"),
        ((JOB, "--max-ap-loss", "1"), "--max-ap-loss is of --int8"),
        ((JOB, "--here", "--int8"), "--dataset FOLDER"),
        (("./folder", "--int8"), "--dataset FOLDER"),
    ],
)
def test_an_export_says_which_options_do_not_go_together(
    fgd: Command, server: Server, arguments: tuple[str, ...], words: str
) -> None:
    done = fgd("export", *arguments, "--onnx", "a.onnx", url=server.url)
    assert (done.code, server.asked) == (2, [])
    assert words in done.err


# --- studies --------------------------------------------------------------------------------------------------

STUDY = {
    "id": "std_" + "1" * 32,
    "name": "what helps",
    "state": "running",
    "jobs": {"total": 4, "queued": 1, "running": 1, "succeeded": 2},
    "arms": [{"name": "control", "methods": []}, {"name": "fgd", "methods": [{"kind": "fgd"}]}],
    "students": [{"name": "FCOS R18, FPN 256", "student": {}}],
    "seeds": [0, 1],
    "created_at": "2026-11-30T10:00:00Z",
}
ROW = {
    "arm": "fgd",
    "student": "FCOS R18, FPN 256",
    "against": "control",
    "succeeded": 2,
    "ap": 36.04,
    "difference": {"value": 4.04, "low": -1.5, "high": 9.2, "seeds": [0, 1]},
    "difference_over_images": {"value": 4.0, "low": 0.5, "high": 7.9, "seeds": [0, 1]},
    "gap_closed": {"value": 0.22, "low": None, "high": None},
    "device_seconds": 3725.0,
    "quality": {"ap": 32.0, "reached": 2, "runs": 2, "step": 150.0, "seconds": 20.0, "steps_ratio": 0.5},
    "runs": [{"seed": 0, "state": "succeeded"}, {"seed": 1, "state": "succeeded"}],
}
BOARD = {"study": STUDY["id"], "state": "running", "split": "val", "rows": [ROW], "pending": 0}


def test_a_study_is_made_of_a_jobs_spec_and_options(fgd: Command, server: Server) -> None:
    server.routes[("POST", "/v1/studies")] = Answer(201, STUDY)
    spec = {"name": "x", "teacher": None, "student": {"kind": "fcos"}, "methods": [{"kind": "fgd"}], "seed": 3}
    options = ["--arm", "mimic", "--arm", 'focal={"kind": "fgd", "lambda": 0}', "--seeds", "0,2-4", "--no-control"]

    done = fgd("study", "submit", "-", *options, url=server.url, stdin=json.dumps(spec))
    plain = fgd("study", "submit", "-", url=server.url, stdin=json.dumps(spec))

    assert (done.code, done.out) == (0, f"{STUDY['id']}\n"), done.err
    assert "4 jobs: 2 arms x 1 student x 2 seeds" in done.err
    given, kept = (json.loads(asked.body) for asked in server.asked)
    assert given == {
        "name": "x", "teacher": None, "students": [{"kind": "fcos"}], "seeds": [0, 2, 3, 4], "control": False,
        "arms": [
            {"name": "mimic", "methods": [{"kind": "mimic"}]},
            {"name": "focal", "methods": [{"kind": "fgd", "lambda": 0}]},
        ],
    }  # fmt: skip
    assert (kept["arms"], kept["seeds"]) == ([{"name": "fgd", "methods": [{"kind": "fgd"}]}], [3])
    assert plain.code == 0


def test_a_plan_of_a_study_has_its_jobs_and_what_they_cost(fgd: Command, server: Server) -> None:
    run = {"student": "FCOS R18", "jobs": 3, "spec": {"name": "x"}}
    runs = [{**run, "arm": "control", "against": None}, {**run, "arm": "fgd", "against": "control"}]
    server.routes[("POST", "/v1/studies")] = Answer(200, {"jobs": 6, "runs": runs})
    measured, error = PLAN | {"state": "measured", "measured": MEASURED}, {"code": "user_error", "message": "too small"}
    failed = PLAN | {"state": "failed", "error": error}
    server.routes["POST", "/v1/plans"] = [Answer(200, measured), Answer(200, measured), Answer(200, failed)]

    planned = fgd("study", "plan", "-", "--seeds", "0-2", url=server.url, stdin="{}")
    failing = fgd("study", "plan", "-", "--json", url=server.url, stdin="{}")
    quick = fgd("study", "plan", "-", "--no-wait", url=server.url, stdin="{}")

    assert planned.out == "control\tFCOS R18\t-\t3\t2.5 h\t900 MiB\nfgd\tFCOS R18\tcontrol\t3\t2.5 h\t900 MiB\n"
    assert "6 jobs: 15.0 h if they run one after the other" in planned.err
    assert (failing.code, json.loads(failing.out)["plans"][0]["error"]["message"]) == (1, "too small")
    assert quick.out.splitlines()[1] == "fgd\tFCOS R18\tcontrol\t3\t-\t-"
    assert all(asked.query == {"dry_run": "true"} for asked in server.asked_for("POST", "/v1/studies"))
    assert json.loads(server.asked_for("POST", "/v1/studies")[0].body)["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--seeds", "a"], "write numbers"),
        (["--seeds", "5-3"], "no range"),
        (["--arm", "x={"], "--arm x: "),
        (["--arm", "x=3"], "a list of them belongs behind the ="),
    ],
)
def test_options_of_a_study_that_say_nothing_are_refused(fgd: Command, options: list[str], complaint: str) -> None:
    done = fgd("study", "submit", "-", *options, stdin="{}")
    assert done.code == 2
    assert complaint in done.err


def test_a_studys_file_does_not_mix_with_a_jobs(fgd: Command) -> None:
    done = fgd("study", "submit", "-", stdin='{"methods": [], "seeds": [0]}')
    assert (done.code, "seeds belongs to a study" in done.err) == (2, True)


def test_the_leaderboard_is_waited_for_and_printed_as_json_or_csv(fgd: Command, server: Server) -> None:
    path = f"/v1/studies/{STUDY['id']}/leaderboard"
    server.routes[("GET", path)] = [Answer(200, BOARD | {"pending": 2}), Answer(200, BOARD)]
    assert json.loads(fgd("study", "show", str(STUDY["id"]), url=server.url).out)["rows"][0]["ap"] == 36.04
    assert len(server.asked) == 2
    server.routes[("GET", path)] = lambda asked: (
        Answer(200, b"arm,ap\r\nfgd,36.0\r\n") if asked.headers["accept"] == "text/csv" else Answer(200, BOARD)
    )
    assert fgd("study", "show", str(STUDY["id"]), "--csv", url=server.url).out.split() == ["arm,ap", "fgd,36.0"]


def test_a_row_of_the_leaderboard_reads_like_this() -> None:
    assert studies._board_cells(BoardRow.model_validate(ROW), several=False) == [
        "fgd", "2/2", "36.0", "+4.0 [-1.5, +9.2]", "[+0.5, +7.9]", "22%", "1:02:05", "step 150 (50%), 2 of 2",
    ]  # fmt: skip
    bare = BoardRow(arm="fgd", student="x")
    assert studies._board_cells(bare, several=True) == ["fgd", "x", "0/0", *["-"] * 6]


def test_a_study_is_listed_and_asked_to_do_things(fgd: Command, server: Server) -> None:
    url = f"/v1/studies/{STUDY['id']}"
    server.routes[("GET", "/v1/studies")] = Answer(200, {"items": [STUDY], "next": None})
    for verb in ("pause", "resume", "retry", "cancel", "extend"):
        server.routes[("POST", f"{url}/{verb}")] = Answer(202, STUDY)
    server.routes[("DELETE", url)] = Answer(204)

    assert fgd("study", "list", url=server.url).out.split("\t")[:5] == [STUDY["id"], "what helps", "running", "2", "4"]
    id = str(STUDY["id"])
    said = [fgd("study", verb, id, url=server.url).out.split()[1] for verb in ("pause", "resume", "retry", "cancel")]
    assert said == ["pausing", "running", "running", "cancelling"]
    assert fgd("study", "extend", id, "--seeds", "2,3", url=server.url).code == 0
    assert json.loads(server.asked[-1].body) == {"seeds": [2, 3], "arms": []}
    assert fgd("study", "extend", id, url=server.url).code == 2
    assert fgd("study", "delete", id, "--jobs", url=server.url).out == f"{id}  deleted\n"
    assert server.asked[-1].query == {"jobs": "true"}


def test_watching_a_study_ends_as_it_does(fgd: Command, server: Server) -> None:
    ended = STUDY | {"state": "failed", "jobs": {"total": 4, "succeeded": 3, "failed": 1}}
    server.routes[("GET", f"/v1/studies/{STUDY['id']}")] = [Answer(200, STUDY), Answer(200, ended)]

    done = fgd("study", "watch", str(STUDY["id"]), url=server.url)

    assert done.code == 1
    assert [line.partition("  ")[2] for line in done.out.splitlines()[:2]] == [
        "running: 1 queued, 1 running, 2 succeeded", "failed: 3 succeeded, 1 failed",
    ]  # fmt: skip


def test_a_prediction_is_told_and_drawn_beside_each_other(fgd: Command, server: Server, tmp_path: Path) -> None:
    box = {"box": [2.0, 3.0, 20.0, 30.0], "score": 0.754, "name": "cat\x1b", "label": 1}
    networks = [
        {"role": "student", "detections": [box], "seconds": 0.1},
        {"role": "teacher", "detections": [], "seconds": 0.1},
    ]
    result = {"width": 64, "height": 48, "orientation": 6, "networks": networks}
    made = {"id": "pred_1", "state": "succeeded", "networks": [], "result": result}
    server.routes["POST", "/v1/predictions"] = Answer(200, made)
    photo, drawn = tmp_path / "photo.jpg", tmp_path / "new" / "found.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64), "white").save(photo, exif=exif)

    done = fgd("predict", str(photo), "--job", JOB, "--score", "0.5", "--out", str(drawn), url=server.url)

    assert done.code == 0, done.err
    (asked,) = server.asked_for("POST", "/v1/predictions")
    assert asked.query == {"job": JOB, "which": "last", "score": "0.5"}
    assert asked.body == photo.read_bytes()
    assert asked.headers["prefer"].startswith("wait=")
    assert "student\tcat\\u001b\t0.75\t2 3 20 30\n" in done.out
    assert "teacher: nothing with this score" in done.err
    with Image.open(drawn) as sheet:
        assert sheet.width == 2 * 64
        assert sheet.height > 48
        head = sheet.height - 48
        assert sheet.getpixel((2, head + 10)) != (255, 255, 255), "the left side of the box"
        assert sheet.getpixel((64 + 2, head + 10)) == (255, 255, 255), "the teacher found nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--job JOB, or --model MODEL"),
        (("--job", JOB, "--model", MODEL), "--job JOB, or --model MODEL"),
        (("--model", MODEL, "--best"), "--best"),
        (("--job", JOB, "--out", "found.jpg"), "must end in .png"),
    ],
)
def test_a_prediction_says_which_options_are_wrong(
    fgd: Command, server: Server, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"x")
    done = fgd("predict", str(photo), *arguments, url=server.url)
    assert (done.code, server.asked) == (2, [])
    assert words in done.err
