"""Every method's golden file: recognised, equal, and refused when bent or malformed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fgd import parity
from fgd.parity.figures import Case, compare

HERE = Path(__file__).parent
METHODS = ("fgd", "pkd", "cwd", "mgd", "fkd", "defeat", "fgfi", "frs", "crosskd", "ld", "gid")

Arrays = dict[str, NDArray[Any]]


def files(method: str) -> tuple[Path, Path]:
    return HERE / f"{method}_reference.npz", HERE / f"{method}_reference.json"


def one_case(method: str) -> tuple[Arrays, list[dict[str, Any]]]:
    """The first case of the file alone."""
    npz, settings = files(method)
    case = json.loads(settings.read_text())[0]
    with np.load(npz) as file:
        return {key: file[key] for key in file.files if key.startswith(f"{case['name']}/")}, [case]


def run(folder: Path, arrays: Arrays, settings: object) -> int:
    np.savez(folder / "file.npz", **arrays)  # type: ignore[arg-type]
    (folder / "file.json").write_text(json.dumps(settings))
    return parity.main([str(folder / "file.npz"), str(folder / "file.json")])


def key_of(arrays: Arrays, *endings: str) -> str:
    return next(key for ending in endings for key in arrays if key.split("/", 1)[1].startswith(ending))


@pytest.mark.numeric
@pytest.mark.parametrize("method", METHODS)
def test_all_figures_of_a_method_agree(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(each) for each in files(method)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 2} figures of {method}, all agree"


@pytest.mark.parametrize("method", METHODS)
def test_a_figure_bent_by_a_thousandth_is_beyond_the_tolerance(method: str) -> None:
    """Of the first case every compared number; each where it is largest."""
    for case, arrays in parity.load(*files(method)):
        ours = case.figures(arrays)
        for key in case.results():
            good = compare(case.name, key, ours.get(key, torch.zeros(())), arrays[key], case.limit(key))
            assert good.good, key
            if arrays[key].numel():
                bent = compare(case.name, key, ours.get(key, torch.zeros(())), bend(arrays[key]), case.limit(key))
                assert not bent.good, key
        return


def bend(reference: torch.Tensor) -> torch.Tensor:
    bent = reference.clone().flatten()
    if not reference.is_floating_point():
        bent[0] += 1
    else:
        place = bent.abs().argmax()
        bent[place] = bent[place] * 1.001 if bent[place].abs() > 1e-9 else 1e-3
    return bent.view_as(reference)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["total", "grad", "input"])
def test_a_file_with_bent_numbers_exits_1(tmp_path: Path, method: str, what: str) -> None:
    arrays, settings = one_case(method)
    endings = {"total": ("total",), "grad": ("grad",), "input": ("student_reg", "student", "cross_cls")}
    key = key_of(arrays, *endings[what])
    # All of an input: what one number says may lie under a mask.
    place = ... if what == "input" else np.unravel_index(np.abs(arrays[key]).argmax(), arrays[key].shape)
    arrays[key] = arrays[key].copy()
    arrays[key][place] *= np.float32(1.001)

    assert run(tmp_path, arrays, settings) == 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_malformed_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    good, settings = one_case(method)
    total = key_of(good, "total")
    name = total.split("/")[0]

    def told(arrays: Arrays, changed: object = settings) -> str:
        assert run(tmp_path, arrays, changed) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert f"missing: {total}" in told({key: each for key, each in good.items() if key != total})
    assert f"in no case: {name}/more" in told(good | {f"{name}/more": np.zeros(2, np.float32)})
    assert f"of the wrong shape: {total}" in told(good | {total: np.zeros(3, np.float32)})
    assert f"not floating point: {total} (int64)" in told(good | {total: np.array(1)})
    assert f"not finite: {total}" in told(good | {total: np.array(np.nan, np.float32)})
    needed = next(name for name, each in type_of(method).model_fields.items() if each.is_required() and name != "name")
    assert f"as cases of {method}: 0/" in told(good, [{**settings[0], needed: None}])
    assert needed in told(good, [{**settings[0], needed: None}])


def type_of(method: str) -> type[Case]:
    return type(parity.load(*files(method))[0][0])


@pytest.mark.parametrize("settings", [[{"name": "one"}], [{"name": "one", "of": 1, "no": 2, "method": 3}]])
def test_settings_of_no_method_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: object
) -> None:
    assert run(tmp_path, {}, settings) == 1
    assert "these are no settings of fgd, pkd, cwd" in capsys.readouterr().err


def test_settings_and_arrays_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, settings = files("crosskd")
    heads = [case for case in json.loads(settings.read_text()) if case["family"] == "gfl_cross_head"][:1]
    with np.load(npz) as file:
        arrays = {key: file[key] for key in file.files if key.startswith(f"{heads[0]['name']}/")}

    assert run(tmp_path, arrays, [{**heads[0], "gn_groups": 3}]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{heads[0]['name']}: settings and arrays do not fit together: ")


@pytest.mark.parametrize(
    ("method", "change", "told"),
    [
        ("mgd", {"ct": 10**9}, "the settings have sizes that no array has"),
        ("cwd", {"tau": 1e308}, "settings and arrays do not fit together"),
        ("fgfi", {"threshold": 2}, "as cases of fgfi: 0/threshold"),
        ("ld", {"n": 10**9}, "as cases of ld: 0/n"),
        ("crosskd", {"family": "yolo"}, "as cases of crosskd: 0: "),
    ],
)
def test_absurd_settings_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, change: dict[str, Any], told: str
) -> None:
    arrays, settings = one_case(method)

    assert run(tmp_path, arrays, [{**settings[0], **change}]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.slow
def test_the_command_line_recognises_the_method() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fgd.cli", "parity", *map(str, files("cwd"))],
        capture_output=True, text=True, check=False, cwd=HERE.parents[1],
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "12 figures of cwd, all agree"
