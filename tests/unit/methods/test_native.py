"""The passes in C++: the numbers of torch's operations for any map, and clear words where they cannot be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgd.errors import UserError
from fgd.methods import compiled
from fgd.methods.maps import Wanted
from fgd.methods.native import Native, compiler
from tests.unit.methods.compared import WANTED, assert_close, example, outcome


@pytest.fixture(scope="module")
def native() -> Native:
    try:
        compiler()
    except UserError as error:
        pytest.skip(f"this host cannot compile: {error}")
    return Native()


LAYOUTS = ("channels first", "channels last", "strided")
FLOAT = (torch.float32, torch.float32)


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("of_teacher", LAYOUTS)
@pytest.mark.parametrize("of_student", LAYOUTS)
def test_kernels_give_what_torch_gives(native: Native, of_student: str, of_teacher: str, wanted: Wanted) -> None:
    for shape in ((2, 5, 7), (1, 1, 1), (3, 17, 2500)):  # also more cells than a tile has
        maps = example(shape, (of_student, of_teacher), FLOAT)
        assert_close(outcome(maps, wanted, native), outcome(maps, wanted, None))


@pytest.mark.parametrize("teachers", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("students", [torch.bfloat16, torch.float16, torch.float32])
def test_maps_of_other_types_are_taken_too(native: Native, students: torch.dtype, teachers: torch.dtype) -> None:
    maps = example((2, 8, 70), ("channels first", "channels last"), (students, teachers))
    assert_close(outcome(maps, WANTED["all"], native), outcome(maps, WANTED["all"], None))


def test_a_gradient_keeps_the_layout_of_the_map(native: Native) -> None:
    found = outcome(example((2, 8, 70), ("channels last", "channels first"), FLOAT), WANTED["all"], native)
    assert found["gradient of student"].mT.is_contiguous()


def test_the_number_of_threads_changes_no_bit(native: Native) -> None:
    maps = example((2, 33, 5000), ("channels first", "channels first"), FLOAT)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = native.magnitudes(*maps, torch.ones(2, 5000), torch.ones(2, 33), torch.ones(2, 33))
        torch.set_num_threads(3)
        together = native.magnitudes(*maps, torch.ones(2, 5000), torch.ones(2, 33), torch.ones(2, 33))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))


def test_without_a_compiler_the_field_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"resources\.compile is true, which needs a C\+\+ compiler on the worker"):
        compiled(torch.device("cpu"))


def test_what_a_compiler_complains_of_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UserError, match=r"(?s)resources\.compile is true, but .*broken failed.*no such header"):
        compiled(torch.device("cpu"))
