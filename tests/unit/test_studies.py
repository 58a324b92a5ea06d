"""What the drivers of `make test-isa` and `make gpu` make of what they see; and that a limit of time is one."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.studies import gpu, isa
from tests.studies.gpu import Facts, Item, Row
from tests.studies.isa import Effective, Limits, Ran

# --- the numeric tests under limits ------------------------------------------------------------------------------


def test_limits_are_the_only_ones_of_their_kind_in_the_environment() -> None:
    given = {"PATH": "/bin", isa.ONEDNN: "SSE41", isa.ATEN: "default"}
    assert Limits("AVX2", None).environment(given) == {"PATH": "/bin", isa.ONEDNN: "AVX2"}
    assert Limits(None, "avx2").environment(given) == {"PATH": "/bin", isa.ATEN: "avx2"}


VERBOSE = """\
probe,torch.float32
onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80afa71049cd69a3df32adcccb623b12cd7baa22)
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:blk,undef,src:f32::blocked:abcd::f0,,,2x64x40x40,0.1
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,forward_training,src:f32:a:blocked,,,mb2,0.5
probe,torch.bfloat16
onednn_verbose,v1,primitive,exec,cpu,convolution,jit_bf16:avx512_core,forward_training,src:bf16,,,mb2,0.5
probe,aten,AVX2
"""


def test_what_a_process_really_uses_is_read_from_onednns_own_words() -> None:
    used = isa.effective_of(VERBOSE.splitlines())
    name = "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions"
    assert used == Effective("AVX2", name, ("jit:avx512_core", "jit_bf16:avx512_core"))
    without = [line for line in VERBOSE.splitlines() if "jit_bf16" not in line]
    assert isa.effective_of(without).kernels == ("jit:avx512_core", "none")


def test_a_limit_acts_on_a_process() -> None:
    lowest = isa.probe(Limits("AVX2", "avx2"))
    assert (lowest.aten, lowest.onednn) == ("AVX2", "Intel AVX2")


NARROW, WIDE = Effective("AVX2", "AVX2", ("jit:avx2", "none")), Effective("AVX512", "AMX", ("jit", "brgconv"))


def test_pairs_that_come_to_the_same_are_run_once() -> None:
    used = {Limits("AVX2", None): NARROW, Limits("AVX512_CORE", None): NARROW, Limits(None, None): WIDE}
    assert isa.distinct(used) == (
        [Limits("AVX2", None), Limits(None, None)],
        {Limits("AVX512_CORE", None): Limits("AVX2", None)},
    )


def test_what_the_processor_cannot_show_is_said(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 avx512bw avx512_bf16\nbugs : none\n")
    flags = isa.cpu_flags(tmp_path / "cpuinfo")
    assert isa.not_shown({}, flags) == ["", "- Not shown, for this processor has no AMX."]
    assert isa.not_shown({}, flags | {"amx_bf16"}) == []
    same = isa.not_shown({Limits(None, None): Limits("AVX512_CORE_BF16", None)}, flags)
    assert same[1] == "- no limit, no limit: the same as AVX512_CORE_BF16, no limit here; not run twice."


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.a" name="test_one"/>
<testcase classname="tests.unit.a" name="test_two"><failure message="x">y</failure></testcase>
<testcase classname="tests.unit.a" name="test_three"><skipped message="x"/></testcase>
<testcase classname="tests.unit.a" name="test_four"><error message="x">y</error></testcase>
</testsuite></testsuites>"""


def test_tests_are_counted_from_pytests_report() -> None:
    ran = isa.outcome(JUNIT, 2.0)
    assert ran == Ran(3, ("tests.unit.a::test_two", "tests.unit.a::test_four"), 2.0)
    assert (ran.passed, ran.good) == (1, False)
    limits = Limits("AVX2", None)
    assert (
        isa.table({limits: ran}, {limits: NARROW})[2] == "| AVX2 | no limit | jit:avx2 | none | AVX2 | 3 | 1 | 2 | 2 |"
    )
    assert "- tests.unit.a::test_two under AVX2, no limit" in isa.failures({limits: ran})


def test_a_run_that_ran_nothing_or_not_to_its_end_is_no_good() -> None:
    assert not Ran(0, (), 1.0).good
    assert not Ran(5, (), 1.0, "stopped after 1 s").good
    assert Ran(5, (), 1.0).good


# --- a machine with a GPU ----------------------------------------------------------------------------------------


def item(
    name: str = "x", limit_s: float = 60.0, *, cards: int = 1, rehearsed: bool = False, tests: bool = False
) -> Item:
    needs = gpu.FOR_TESTS if tests else frozenset[str]()
    return Item(name, limit_s, lambda _, __: [], str, needs=needs, cards=cards, rehearsed=rehearsed)


ONE, TWO, NONE = (Facts("2", "0", cards=("a card",) * n, nccl=True) for n in (1, 2, 0))


@pytest.mark.parametrize(
    ("asked", "facts", "why"),
    [
        (item(), ONE, ""),
        (item(), NONE, "torch finds no CUDA device"),
        (item(rehearsed=True), NONE, ""),
        (item(cards=2), ONE, "needs 2 cards, there is 1"),
        (item(cards=2), TWO, ""),
        (item(cards=2), Facts("2", "0", cards=("a", "b")), "this torch has no NCCL"),
        (item(), Facts("2", "0", cards=("a",), lacking=("hypothesis",)), ""),
        (
            item(tests=True),
            Facts("2", "0", ("a",), lacking=("hypothesis",)),
            "not installed, and no wheel was given: hypothesis",
        ),
        (
            item(),
            Facts("2", "0", ("a",), lacking=("safetensors",)),
            "not installed, and no wheel was given: safetensors",
        ),
    ],
)
def test_what_cannot_be_run_is_said_with_the_reason(asked: Item, facts: Facts, why: str) -> None:
    assert gpu.cannot(asked, facts) == why


def test_an_item_gets_its_limit_and_what_later_ones_leave_and_all_end_in_time() -> None:
    first, second = item(limit_s=60), item(limit_s=90)
    assert gpu.allowed_s(first, [second], left_s=150) == 60
    assert gpu.allowed_s(first, [second], left_s=200) == 110
    assert gpu.allowed_s(first, [second], left_s=100) == 60
    assert gpu.allowed_s(second, [], left_s=20) == 20


def test_all_items_fit_into_the_time_of_all() -> None:
    assert sum(each.limit_s for each in gpu.ITEMS) + 20 <= gpu.TOTAL_S <= 480


def test_the_table_says_what_ran_and_below_it_what_did_not() -> None:
    rows = [
        Row("a", "yes", "3 passed", 4.2),
        Row("b", "no", "needs 2 cards, there is 1"),
        Row("c", gpu.REHEARSED, "1 ms", 9.0),
    ]
    assert gpu.table(rows) == [
        "| item | ran? | figure | seconds |",
        "|---|---|---|---|",
        "| a | yes | 3 passed | 4 |",
        "| b | no |  |  |",
        "| c | on the processor | 1 ms | 9 |",
        "",
        "Not run here:",
        "- b: needs 2 cards, there is 1",
        "- c: only rehearsed, tiny, for torch finds no CUDA device",
    ]
    assert gpu.table(rows[:1])[-1] == "All of it ran."


def test_figures_are_read_from_what_the_items_print() -> None:
    tests = "FAILED tests/a.py::test_b - AssertionError\n1 failed, 12 passed, 2 skipped, 40 deselected in 9.1s\n"
    assert gpu.of_pytest(tests) == "1 failed, 12 passed, 2 skipped; tests/a.py::test_b"
    step = "| time | ours, ms |\n|---|\n| clock | 12.0 | 15.0 | 11.0 | 125.0 (1-2) % | 103.0 (1-2) % |\n| cpu | 1 |"
    assert gpu.of_step(step) == "12.0 ms; as loaded / ours 125.0 (1-2) %; ours / floor 103.0 (1-2) %"
    row = "| bf16 trunk | 40.1 | 20.0 | 42.0 | 200.0 (1-2) % | 1 | 95.0 (1-2) % | 1 | 3.0 % |"
    told = "bf16: 40.1 images/s, 200.0 (1-2) % of the tutorial's, 95.0 (1-2) % of the floor's, waits 3.0 % for data"
    assert gpu.of_pipeline(f"| precision | ours |\n{row}\n") == told


def test_an_item_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    ended, output, _ = gpu.bounded(["sh", "-c", "sleep 600 & echo $!; wait"], 1.0, tmp_path / "log")
    assert ended is None
    child = int(output)
    deadline = time.monotonic() + 30.0
    while runs(child) and time.monotonic() < deadline:  # killed, and the kernel takes its time on a busy machine
        time.sleep(0.05)
    assert not runs(child)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("code", "failed"), [("print('7 ms')", False), ("print('7 ms'); exit(3)", True)])
def test_a_row_tells_the_figure_and_whether_it_failed(tmp_path: Path, code: str, failed: bool) -> None:
    ran = gpu.carry_out(
        Item("an item", 60, lambda _, __: ["-c", code], gpu.last_line), ONE, Path(sys.executable), tmp_path, 60
    )
    assert (ran.ran, ran.failed) == ("yes", failed)
    assert "7 ms" in ran.figure
    assert (tmp_path / "an-item.log").read_text() == "7 ms\n"


def test_an_environment_sees_what_this_python_has(tmp_path: Path) -> None:
    gpu.make_venv(tmp_path / "venv")
    ask = "import sys, numpy; print(sys.prefix)"
    command = [str(tmp_path / "venv/bin/python"), "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == (tmp_path / "venv").resolve()


def test_what_the_items_need_is_stated_and_pinned() -> None:
    """A distribution that is not in pyproject.toml or the lock could not be put into the folder of wheels."""
    assert gpu.requirements(["pillow", "something-else"])[1] == "something-else"
    assert gpu.requirements(["pillow"])[0].startswith("pillow>=")
    pins = gpu.pinned((gpu.ROOT / "requirements.lock").read_text())
    names = gpu.closure(gpu.NEEDED, importlib.metadata.requires)
    installed = [name for name in names if name in pins]
    assert set(gpu.NEEDED) <= set(installed)
    assert {"scipy", "pydantic-core"} <= set(installed), "what these need themselves"
    assert "torch" not in installed
    assert all("--hash=sha256:" in pins[name] for name in installed)


def test_a_lock_may_have_a_version_for_each_python() -> None:
    lock = "a==1 ; python_full_version < '3.12' \\\n    --hash=sha256:x\na==2 ; python_full_version >= '3.12'\nb==1\n"
    assert {name: block.count("==") for name, block in gpu.pinned(lock).items()} == {"a": 2, "b": 1}


def test_of_what_a_distribution_needs_extras_are_left_out() -> None:
    needs = {"a": ["B_c>=1", "d; extra == 'x'"], "b-c": None}
    assert gpu.closure({"a": 0}, lambda name: needs[name]) == ["a", "b-c"]
