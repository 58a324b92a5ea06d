"""docker-compose.yml, the Dockerfiles and example.env name only what exists, and refuse what is unsafe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.core.settings import Settings, check_bind
from tests import compose
from tests.compose import EXAMPLE, ROOT, Missing, env_file, resolved, seconds

DOCKERFILES = {name: ROOT / "deploy" / f"Dockerfile.{name}" for name in ("api", "worker")}
SECRETS = ("FGD_API_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD")
FILLED = env_file(EXAMPLE.read_text()) | dict.fromkeys(SECRETS, "0123456789abcdef" * 4)
EVERYTHING = env_file(EXAMPLE.read_text(), commented_too=True) | FILLED
BINARIES = Path(sys.executable).parent
COMPOSE = shutil.which("docker-compose")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FGD_")]:
        monkeypatch.delenv(name)


def services(told: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    return dict(resolved(told or FILLED)["services"])


# --- the formats ---


def test_compose_file_fits_the_compose_specification() -> None:
    command = [BINARIES / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose.FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_check_would_notice(tmp_path: Path) -> None:
    broken = yaml.safe_load(compose.FILE.read_text())
    broken["services"]["api"]["healthchek"] = broken["services"]["api"].pop("healthcheck")
    (tmp_path / "docker-compose.yml").write_text(json.dumps(broken))
    command = [
        BINARIES / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        tmp_path / "docker-compose.yml",
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("image", DOCKERFILES)
def test_dockerfile_has_nothing_that_hadolint_dislikes(image: str) -> None:
    command = [BINARIES / "hadolint", "--no-color", DOCKERFILES[image]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("told", [FILLED, EVERYTHING], ids=["filled in", "everything set"])
def test_compose_reads_the_file_as_these_tests_do(told: dict[str, str], tmp_path: Path) -> None:
    assert COMPOSE is not None
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
    command = [COMPOSE, "--env-file", tmp_path / ".env", "--profile", "*", "config", "--format", "json"]
    said = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    ours = services(told)
    assert said["services"].keys() == ours.keys()
    for name, service in said["services"].items():
        environment = {key: value for key, value in (service.get("environment") or {}).items() if value is not None}
        assert environment == ours[name]["environment"]
        assert service.get("command") == ours[name].get("command")
    assert said["configs"]["redis"]["content"] == resolved(told)["configs"]["redis"]["content"]


# --- secrets ---


@pytest.mark.parametrize("name", SECRETS)
def test_compose_refuses_to_start_without_a_secret_and_says_which(name: str) -> None:
    for told in ({k: v for k, v in FILLED.items() if k != name}, FILLED | {name: ""}):
        with pytest.raises(Missing, match=rf"{name} .*deploy/example\.env"):
            resolved(told)


def test_example_has_no_password_that_works() -> None:
    assert {name for name, value in env_file(EXAMPLE.read_text()).items() if not value} == set(SECRETS)
    assert {name for name, required in compose.variables().items() if required} == set(SECRETS)
    shown = env_file(EXAMPLE.read_text(), commented_too=True)
    assert [shown[name] for name in ("FGD_STORE_SECRET", "FGD_STORE_KEY_ID", "GARAGE_RPC_SECRET")] == [""] * 3


@pytest.mark.parametrize("where", [EXAMPLE, ROOT / "docs/operations.md"], ids=["example.env", "operations.md"])
def test_lines_that_fill_in_the_secrets_do(where: Path, tmp_path: Path) -> None:
    loop = re.search(r"^(#   )?for name in FGD_API_KEY .*?done$", where.read_text(), re.MULTILINE | re.DOTALL)
    assert loop is not None
    shutil.copy(EXAMPLE, tmp_path / ".env")
    script = re.sub(r"^#", "", loop[0], flags=re.MULTILINE)
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    told = env_file((tmp_path / ".env").read_text())
    assert {re.fullmatch(r"[0-9a-f]{64}", told[name]) is not None for name in SECRETS} == {True}
    assert len({told[name] for name in SECRETS}) == len(SECRETS)
    resolved(told)


def test_secrets_reach_only_those_who_need_them() -> None:
    told = FILLED | {name: f"the-{name}".replace("_", "-").lower().ljust(40, "x") for name in SECRETS}
    holders = {
        secret: {
            name
            for name, service in services(told).items()
            if any(told[secret] in v for v in service["environment"].values())
        }
        for secret in SECRETS
    }
    assert holders == {
        "FGD_API_KEY": {"api"},
        "POSTGRES_PASSWORD": {"postgres", "migrate", "api", "worker", "worker-gpu"},
        "REDIS_PASSWORD": {"redis", "api", "worker", "worker-gpu"},
    }


# --- memory ---


def test_no_service_may_take_all_memory_of_the_host() -> None:
    limits = {name: service.get("mem_limit") for name, service in services(EVERYTHING).items()}
    assert all(re.fullmatch(r"\d+[mg]", str(limit)) for limit in limits.values()), limits
    chosen = services(FILLED | {"API_MEMORY": "1g", "WORKER_MEMORY": "60g"})
    assert (chosen["api"]["mem_limit"], chosen["worker-gpu"]["mem_limit"]) == ("1g", "60g")


# --- variables ---


def test_every_variable_is_explained_and_every_explained_one_is_used() -> None:
    text = EXAMPLE.read_text()
    shown = set(env_file(text, commented_too=True))
    assert shown == set(compose.variables()) | {"COMPOSE_PROFILES"}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if name := re.match(r"#?([A-Z_]+)=", line):
            before = lines[number - 1]
            assert before.startswith("# ") or re.match(r"#?[A-Z_]+=", before), f"{name[1]} has no comment"


def test_every_fgd_variable_is_a_setting() -> None:
    known = {f"FGD_{name.upper()}" for name in Settings.model_fields}
    named = {name for service in services(EVERYTHING).values() for name in service["environment"] if "FGD_" in name}
    for path in DOCKERFILES.values():
        named |= set(re.findall(r"\b(FGD_\w+)=", path.read_text()))
    assert named - known == set()
    assert len(named) > 15


def test_defaults_that_the_example_shows_are_the_settings() -> None:
    shown = env_file(EXAMPLE.read_text(), commented_too=True)
    for name in ("FGD_SLOTS", "FGD_CACHE_BYTES", "FGD_GRACE_S", "FGD_UPLOAD_BYTES", "FGD_MAX_MODEL_BYTES",
                 "FGD_MIN_FREE_BYTES", "FGD_MAX_QUEUED_JOBS", "FGD_MAX_STUDY_JOBS", "FGD_MAX_WAITING_IMPORTS",
                 "FGD_MAX_WAITING_PLANS", "FGD_MAX_WAITING_TASKS", "FGD_MAX_STREAMS", "FGD_MAX_WAITERS",
                 "FGD_STORE_REGION", "FGD_STORE_PROXY"):  # fmt: skip
        default = Settings.model_fields[name.removeprefix("FGD_").lower()].default
        assert str(default).lower() in (shown[name], f"{shown[name]}.0"), name


@pytest.mark.parametrize("told", [FILLED, EVERYTHING | {"FGD_STORE_KEY_ID": "GK0", "FGD_STORE_SECRET": "s"}])
@pytest.mark.parametrize("name", ["migrate", "api", "worker", "worker-gpu"])
def test_settings_understand_what_each_service_is_told(
    name: str, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = DOCKERFILES["worker" if name.startswith("worker") else "api"]
    for variable, value in {**image_environment(image), **services(told)[name]["environment"]}.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    if name == "api":
        check_bind(settings)
    assert settings.database_url.startswith("postgresql+psycopg://fgd:")
    assert (settings.api_key is not None) == (name == "api")
    if name != "migrate":
        assert settings.store_url == told.get("FGD_STORE_URL")
        mounted = {mount.split(":")[1] for mount in services(told)[name]["volumes"]}
        assert str(settings.blobs) in mounted
        assert (str(settings.home) in mounted) == (name == "api")
        assert name != "api" or settings.uploads.is_relative_to(settings.blobs), "one disk: what came is linked"
        assert {str(root) for root in settings.data_roots} <= mounted
        assert settings.weights_dir is None or str(settings.weights_dir) in mounted


def image_environment(path: Path) -> dict[str, str]:
    said = " ".join(words for instruction, words in compose.dockerfile(path) if instruction == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", said))


def test_all_parts_of_the_service_share_one_place_for_blobs() -> None:
    for told in (FILLED, EVERYTHING):
        for name in ("api", "worker", "worker-gpu"):
            assert "blobs:/srv/fgd/blobs" in services(told)[name]["volumes"]
    assert {image_environment(path)["FGD_BLOBS"] for path in DOCKERFILES.values()} == {"/srv/fgd/blobs"}
    users = {re.findall(r"--uid (\d+)", path.read_text())[0] for path in DOCKERFILES.values()}
    assert users == {
        words for path in DOCKERFILES.values() for word, words in compose.dockerfile(path) if word == "USER"
    }
    assert len(users) == 1


# --- order, health and ends ---


def test_tables_are_there_before_anybody_uses_them() -> None:
    found = services()
    assert found["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert found["migrate"]["restart"] == "no"
    for name in ("api", "worker", "worker-gpu"):
        assert found[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert found[name]["depends_on"]["garage"] == {"condition": "service_healthy", "required": False}


def test_everything_that_stays_has_a_health_check_and_starts_again() -> None:
    for name, service in services().items():
        if name != "migrate":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
            assert service["restart"] == "unless-stopped", name


def test_commands_are_modules_of_ours_and_those_of_the_images() -> None:
    for name, service in services().items():
        if "build" in service:
            image = ROOT / service["build"]["dockerfile"]
            checks = [service["healthcheck"]["test"][1:]] if "healthcheck" in service else []
            for command in (service["command"], *checks):
                assert command[:2] == ["python", "-m"], name
                package = command[2].split(".")
                assert (
                    ROOT.joinpath(*package).with_suffix(".py").exists()
                    or ROOT.joinpath(*package, "__main__.py").exists()
                )
            (default,) = [json.loads(words) for instruction, words in compose.dockerfile(image) if instruction == "CMD"]
            assert name == "migrate" or default == service["command"]


def test_worker_is_not_killed_while_its_trainers_save() -> None:
    for name in ("worker", "worker-gpu"):
        service = services()[name]
        drain_s = float(service["command"][service["command"].index("--drain-s") + 1])
        assert seconds(service["stop_grace_period"]) >= drain_s + 20


def test_profiles() -> None:
    found = services()
    assert {name for name, service in found.items() if "profiles" not in service} == {
        "postgres", "redis", "migrate", "api", "worker",
    }  # fmt: skip
    assert (found["worker-gpu"]["profiles"], found["garage"]["profiles"]) == (["gpu"], ["s3"])
    (device,) = found["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in found["worker"]
    assert found["worker"]["scale"] == "1"
    assert services(FILLED | {"CPU_WORKERS": "0"})["worker"]["scale"] == "0"


def test_nobody_has_rights_that_it_does_not_need() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
    assert [name for name, service in services().items() if "ports" in service] == ["api"]
    assert services()["api"]["ports"] == ["127.0.0.1:8000:8000"]
    inside = {name for name, service in services().items() if service["networks"] == ["inside"]}
    assert inside == {"postgres", "redis", "migrate", "garage"}
    assert resolved(FILLED)["networks"]["inside"] == {"internal": True}


# --- images ---


def test_images_are_pinned() -> None:
    images = {name: service["image"] for name, service in services().items() if "build" not in service}
    assert images.keys() == {"postgres", "redis", "garage"}
    for path in DOCKERFILES.values():
        for instruction, words in compose.dockerfile(path):
            if instruction == "FROM":
                images[f"{path.name}: {words}"] = words.split()[0]
    for name, image in images.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)*$", image), name
    assert len({image for image in images.values() if image.startswith("python:")}) == 1


@pytest.mark.parametrize("image", DOCKERFILES)
def test_copied_files_exist_and_reach_the_build(image: str) -> None:
    there = compose.context()
    for instruction, words in compose.dockerfile(DOCKERFILES[image]):
        if instruction == "COPY" and "--from" not in words:
            for source in words.split()[:-1]:
                inside = [path for path in there if path == source or path.startswith(f"{source.rstrip('/')}/")]
                assert inside, f"COPY {source} finds nothing"


def test_build_sees_all_of_our_code_and_nothing_else() -> None:
    there = compose.context()
    for package in ("api", "worker", "fgd", "deploy"):
        ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert ours <= there
    tops = {path.split("/")[0] for path in there}
    assert tops <= {"api", "worker", "fgd", "deploy", "pyproject.toml", "README.md", "requirements-torch.txt",
                    ".dockerignore", "Dockerfile"}  # fmt: skip
    assert not [path for path in there if "__pycache__" in path]


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;\\]+)", path.read_text(), re.MULTILINE))


def test_lock_of_the_images_is_part_of_the_lock_of_the_tests() -> None:
    images, all_of_it = pins(ROOT / "deploy" / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert images.items() <= all_of_it.items()
    assert not {"torch", "torchvision", "pytest", "moto", "mypy", "ruff"} & images.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in [*project["dependencies"], *extras["postgres"], *extras["s3"]]:
        name = re.match(r"[\w.-]+", wanted)
        assert name is not None
        assert name[0].lower() in images, wanted
    for path in DOCKERFILES.values():
        assert f"setuptools=={all_of_it['setuptools']}\n" in path.read_text()
