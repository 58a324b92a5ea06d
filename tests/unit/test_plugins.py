"""A method of another package: the one of docs/extending.md is built, installed in a folder, and trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fgd.data.digits import compose
from fgd.plugins import GROUP, found
from tests.unit.breadth.copied import save_untrained, text_of

ROOT = Path(__file__).parents[2]
STUDENT = {"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64}


def blocks() -> list[str]:
    text = text_of("A method in a package of your own")
    return [part.partition("\n")[2] for part in text.split("```")[1::2]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package of the docs is installed in."""
    folder = tmp_path_factory.mktemp("package")
    project, spec, loss = blocks()
    (folder / "fgd_cosine").mkdir()
    (folder / "pyproject.toml").write_text(project)
    (folder / "fgd_cosine/spec.py").write_text(spec)
    (folder / "fgd_cosine/loss.py").write_text(loss)
    (folder / "fgd_cosine/__init__.py").touch()
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", *install, "--target", folder / "site", folder], check=True)
    return folder / "site"


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{site}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_the_docs_show_it_in_less_than_40_lines() -> None:
    assert len(blocks()) == 3
    assert sum(len(block.splitlines()) for block in blocks()) < 40


CATALOGUE = """
import json, sys
from api.catalogue import catalogue
from api.core.settings import Settings
from fgd.spec import SubmitJob
entry = next(each for each in catalogue()[0].methods if each.kind == "cosine")
print(json.dumps([entry.families, list(entry.json_schema["properties"]), "torch" in sys.modules,
                  "fgd_cosine.loss" in sys.modules]))
"""


def test_the_service_knows_it_without_loading_torch(site: Path) -> None:
    done = run(site, "-c", CATALOGUE)
    assert done.returncode == 0, done.stderr
    families, fields, torch, loss = json.loads(done.stdout)
    assert families == ["fcos", "retinanet", "faster_rcnn"]
    assert set(fields) >= {"kind", "weight", "rho"}
    assert not torch
    assert not loss


def test_it_trains_beside_another_method(site: Path, tmp_path: Path) -> None:
    compose(tmp_path / "data", counts={"train": 2, "val": 1, "test": 1}, size=64, classes=("0", "7"), box_px=(16, 40))
    save_untrained(tmp_path / "teacher", STUDENT)
    job = {
        "name": "plug-in",
        "teacher": {"path": str(tmp_path / "teacher"), "allow_unfit": True},
        "student": STUDENT,
        "dataset": {"path": str(tmp_path / "data")},
        "methods": [{"kind": "cosine", "weight": 0.5}, {"kind": "mimic", "weight": 0.016}],
        "schedule": {"epochs": 1, "batch_size": 2, "min_size": 64, "max_size": 64},
        "resources": {"device": "cpu", "threads": 1},
    }
    (tmp_path / "spec.json").write_text(json.dumps(job))
    done = run(site, "-m", "fgd.train", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    events = [json.loads(line) for line in done.stdout.splitlines()]
    losses = next(event["values"] for event in events if event["type"] == "stepped")
    assert 0 < losses["loss/cosine/feature"] < 5 * 0.5 * 2
    assert losses["loss/mimic/feature"] > 0
    manifest = json.loads((tmp_path / "out/result/manifest.json").read_text())
    assert manifest["spec"]["methods"][0] == {"kind": "cosine", "weight": 0.5, "rho": 0.0}


def test_where_it_is_not_installed_nobody_knows_it() -> None:
    script = "from fgd.spec import JobSpec; JobSpec.model_json_schema()['$defs']['ChannelCosine']"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "KeyError: 'ChannelCosine'" in done.stderr


SPECS = """
from typing import Literal
from fgd.method_specs import Method_

class Right(Method_):
    implementation = "here:Loss"
    kind: Literal["right"] = "right"

class AsAnother(Right):
    kind: Literal["fgd"] = "fgd"

class Nowhere(Method_):
    kind: Literal["nowhere"] = "nowhere"

class Nameless(Method_):
    implementation = "here:Loss"

function = print
"""


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("plugin_specs:Right", None),
        ("plugin_specs:AsAnother", 'another method has the kind "fgd"'),
        ("plugin_specs:Nowhere", 'its implementation is not "module:Class"'),
        ("plugin_specs:Nameless", 'it has no field kind: Literal["NAME"] = "NAME"'),
        ("plugin_specs:function", "it is not a subclass of fgd.method_specs.Method_"),
        ("plugin_specs:Absent", "it cannot be imported: AttributeError"),
        ("no_such_module:Absent", "it cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_the_reason(
    value: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_specs.py").write_text(SPECS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kinds = list(found([EntryPoint("mine", value, GROUP)], frozenset({"fgd"})))
    assert len(told) == (fault is not None)
    if fault is None:
        assert [each.__name__ for each in kinds] == ["Right"]
    else:
        assert kinds == []
        assert f"the method mine ({value}) is left out: {fault}" in str(told[0].message)


def test_of_two_of_one_kind_the_first_by_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_specs.py").write_text(SPECS)
    monkeypatch.syspath_prepend(str(tmp_path))
    both = [EntryPoint(name, "plugin_specs:Right", GROUP) for name in ("b", "a")]
    with pytest.warns(UserWarning, match=r'the method b .* another method has the kind "right"'):
        assert len(list(found(both, frozenset()))) == 1
