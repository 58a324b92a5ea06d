"""`python -m fgd.parity`: good files pass, and no bent, missing or malformed number does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fgd import parity
from fgd.parity import figures

HERE = Path(__file__).parent
NPZ, JSON = HERE / "fgd_reference.npz", HERE / "fgd_reference.json"
CASE = "align_and_trained"
"""The smallest case that has every kind of key."""

Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def arrays() -> Arrays:
    with np.load(NPZ) as file:
        return {key: file[key] for key in file.files if key.startswith(f"{CASE}/")}


@pytest.fixture
def settings() -> list[dict[str, Any]]:
    return [case for case in json.loads(JSON.read_text()) if case["name"] == CASE]


def run(folder: Path, arrays: Arrays, settings: object) -> int:
    np.savez(folder / "file.npz", **arrays)  # type: ignore[arg-type]
    (folder / "file.json").write_text(json.dumps(settings))
    return parity.main([str(folder / "file.npz"), str(folder / "file.json")])


def keys() -> list[str]:
    """Every key of the case, without its name."""
    with np.load(NPZ) as file:
        return [key.removeprefix(f"{CASE}/") for key in file.files if key.startswith(f"{CASE}/")]


INVISIBLE = ["module/conv_mask_s.bias", "module/conv_mask_t.bias"]
"""A constant under a softmax: no figure depends on it."""
KEYS = keys()


# --- good files -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.numeric
def test_the_reference_file_passes_on_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fgd.parity", NPZ, JSON],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
    )

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["case", "quantity", "error"]
    assert lines[-1] == f"{len(lines) - 2} figures of fgd, all agree"
    for case in json.loads(JSON.read_text()):
        of_case = [line for line in lines if line.split()[0] == case["name"]]
        quantities = [line.split()[1] for line in of_case]
        assert quantities[:6] == ["raw/fg", "raw/bg", "raw/attention", "raw/global", "total", "grad_student"]
        assert len(quantities) == (24 if case["cs"] != case["ct"] else 22)


def test_a_file_of_one_case_passes(tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]]) -> None:
    assert run(tmp_path, arrays, settings) == 0


def test_a_term_switched_off_adds_nothing(tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]]) -> None:
    settings[0]["loss_weights"] = dict.fromkeys(settings[0]["loss_weights"], 0)
    for key in arrays:
        if "/total" in key or "/grad" in key:
            arrays[key] = np.zeros_like(arrays[key])

    assert run(tmp_path, arrays, settings) == 0


# --- bent numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in KEYS if key not in INVISIBLE])
def test_a_bent_number_fails(tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], key: str) -> None:
    array = arrays[f"{CASE}/{key}"].copy()
    # A parameter is bent where the total feels it most: behind a ReLU that is shut, nothing would change.
    felt = np.abs(arrays[f"{CASE}/{key.replace('module/', 'grad/')}"])
    where = np.unravel_index(felt.argmax(), array.shape)
    # Boxes move by pixels, to other cells; a gradient that is rounding noise becomes a number.
    array[where] = array[where] * np.float32(0.99) + np.float32(-40 if "boxes" in key else 1e-6)
    arrays[f"{CASE}/{key}"] = array

    assert run(tmp_path, arrays, settings) == 1


def test_a_bias_under_the_softmax_is_the_one_number_nothing_depends_on(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]]
) -> None:
    for key in INVISIBLE:
        arrays[f"{CASE}/{key}"] += np.float32(1)

    assert run(tmp_path, arrays, settings) == 0


@pytest.mark.parametrize("setting", ["alpha_fgd", "beta_fgd", "gamma_fgd", "lambda_fgd"])
def test_a_bent_weight_fails(tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], setting: str) -> None:
    settings[0]["loss_weights"][setting] *= 1.01

    assert run(tmp_path, arrays, settings) == 1


def test_a_bent_temperature_fails(tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]]) -> None:
    settings[0]["temp"] *= 1.01

    assert run(tmp_path, arrays, settings) == 1


def test_the_table_marks_what_is_beyond(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arrays[f"{CASE}/raw/fg"] = arrays[f"{CASE}/raw/fg"] * np.float32(1.5)

    assert run(tmp_path, arrays, settings) == 1
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split() for line in lines if "beyond 1e-05" in line]
    assert [line[:3] for line in marked] == [[CASE, "raw/fg", "3.3e-01"]]
    assert lines[-1] == "24 figures of fgd, 1 beyond the tolerance"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", KEYS)
def test_a_number_that_is_not_finite_fails(
    tmp_path: Path,
    arrays: Arrays,
    settings: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: float,
) -> None:
    array = arrays[f"{CASE}/{key}"].copy()
    array.flat[-1] = value
    arrays[f"{CASE}/{key}"] = array

    assert run(tmp_path, arrays, settings) == 1
    assert f"not finite: {CASE}/{key}" in capsys.readouterr().err


def test_nan_of_ours_is_beyond_every_limit() -> None:
    assert not figures.Figure(CASE, "total", float("nan"), figures.TOLERANCE).good


# --- malformed files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    del arrays[f"{CASE}/{key}"]

    assert run(tmp_path, arrays, settings) == 1
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path}/file.npz: missing: {CASE}/{key}"]


def test_a_key_of_no_case_is_named(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arrays[f"{CASE}/boxes/2"] = np.zeros((0, 4), np.float32)

    assert run(tmp_path, arrays, settings) == 1
    assert f"in no case: {CASE}/boxes/2" in capsys.readouterr().err


def test_an_array_of_the_wrong_shape_is_named(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arrays[f"{CASE}/teacher"] = arrays[f"{CASE}/teacher"][:, :-1]

    assert run(tmp_path, arrays, settings) == 1
    assert f"of the wrong shape: {CASE}/teacher" in capsys.readouterr().err


def test_integers_are_refused(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arrays[f"{CASE}/boxes/0"] = arrays[f"{CASE}/boxes/0"].astype(np.int64)

    assert run(tmp_path, arrays, settings) == 1
    assert f"not floating point: {CASE}/boxes/0 (int64)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temp": None}, "0/temp"),
        ({"temp": 0}, "0/temp"),
        ({"loss_weights": {"alpha_fgd": 1, "beta_fgd": 1, "gamma_fgd": 1}}, "0/loss_weights/lambda_fgd"),
        ({"n": 3}, f"{CASE}/boxes/2"),
        ({"name": "other"}, "missing: other/student"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path,
    arrays: Arrays,
    settings: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    told: str,
) -> None:
    settings[0] |= change

    assert run(tmp_path, arrays, settings) == 1
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("settings", [[], {}, 3, [3]])
def test_settings_that_are_no_cases_are_refused(tmp_path: Path, arrays: Arrays, settings: object) -> None:
    assert run(tmp_path, arrays, settings) == 1


def test_two_cases_of_one_name_are_refused(
    tmp_path: Path, arrays: Arrays, settings: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, arrays, settings * 2) == 1
    assert "a different name" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no zip", NPZ.read_bytes()[:100_000]], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_npz_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(content)

    assert parity.main([str(broken), str(JSON)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_single_array_is_no_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))

    assert parity.main([str(tmp_path / "array.npy"), str(JSON)]) == 1
    assert "not a readable .npz file" in capsys.readouterr().err


@pytest.mark.parametrize("absent", [0, 1])
def test_an_absent_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], absent: int) -> None:
    arguments = [str(NPZ), str(JSON)]
    arguments[absent] = str(tmp_path / "absent")

    assert parity.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}/absent: ")


def test_a_wrong_command_line_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(NPZ)]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
