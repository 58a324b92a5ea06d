"""Our wheel as a user gets it: built from a copy of the sources, installed into a new environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("api", "worker", "fgd", "deploy", "pyproject.toml", "README.md")


def build(folder: Path) -> Path:
    """The wheel. The sources stay untouched: setuptools leaves a build folder beside what it builds."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path) -> Path:
    """A new, empty virtual environment without pip; gives its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def install(python: Path, *what: str) -> None:
    _pip("--python", str(python), "install", *what)


def lend_packages(python: Path) -> None:
    """Third-party packages of the tests' own environment, behind what is installed in this one.

    Its editable install of this repository does not come along: a path file's folder is not read for further ones.
    """
    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-4000:]
