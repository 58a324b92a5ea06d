"""docker-compose.yml as Compose reads it, variables filled in and merges done. For tests, which have no Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / "deploy" / "example.env"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:\?|:-)(?P<rest>[^}]*))?\}|\$(?P<bare>\w+)")


class Missing(Exception):
    """Compose would refuse to start, with this message."""


def resolved(told: Mapping[str, str]) -> dict[str, Any]:
    """The file with the variables that `told` (a .env file) gives. Raises Missing."""
    whole = yaml.safe_load(FILE.read_text())
    services = {name: _fill(service, told) for name, service in whole["services"].items()}
    for service in services.values():
        given = service.get("environment", {})
        absent = {name for name, value in given.items() if value is None and name not in told}
        service["environment"] = {
            name: str(told[name] if value is None else value) for name, value in given.items() if name not in absent
        }
    return {
        **_fill({key: value for key, value in whole.items() if not key.startswith("x-")}, told),
        "services": services,
    }


def variables() -> dict[str, bool]:
    """Every variable that the file asks .env for; True: it refuses to start without it."""
    asked: dict[str, bool] = {}
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    for found in _VARIABLE.finditer(text):
        name = found["name"] or found["bare"]
        asked[name] = asked.get(name, False) or found["how"] == ":?"
    for service in yaml.safe_load(FILE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            if value is None:
                asked.setdefault(name, False)
    return asked


def env_file(text: str, commented_too: bool = False) -> dict[str, str]:
    """The variables that an .env file sets; with `commented_too` also those that it only shows."""
    line = r"^#?([A-Z_]+)=(.*)$" if commented_too else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(line, text, re.MULTILINE))


def seconds(duration: str) -> float:
    """Of Compose's durations those that the file uses: 90s, 1m."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1.0, "m": 60.0}[unit]


def dockerfile(path: Path) -> list[tuple[str, str]]:
    """Instructions and what they are told, in order, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def context() -> set[str]:
    """The files that a build sees, by the rules of .dockerignore as Docker's own client applies them."""
    from docker.utils.build import exclude_paths

    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(ROOT), patterns) if (ROOT / path).is_file()}


def _fill(value: Any, told: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, told) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, told) for item in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name = found["name"] or found["bare"]
        if found["how"] == ":?" and not told.get(name):
            raise Missing(f"{name} {found['rest']}")
        return told.get(name) or found["rest"] or ""

    return _VARIABLE.sub(fill, value)
