"""Do the numeric tests hold on other processors? They run under limits, as if this processor knew fewer instructions.

    python -m tests.studies.isa                 # what `make test-isa` does
    python -m tests.studies.isa -- -k towers    # what stands behind -- goes to pytest

ONEDNN_MAX_CPU_ISA bounds oneDNN, which takes convolutions and products; ATEN_CPU_CAPABILITY bounds ATen, which takes
all else. A child process says for each pair which instructions are really used, and pairs that come to the same are run
once. The tests are those marked `numeric`, in one process a worker, with one thread.

Prints a table in Markdown, the tests that failed, and the limits that this processor cannot show. Exit code 1 if a test
failed, if a pair ran none, or if one took longer than --limit-s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.studies.checkout import commit

ROOT = Path(__file__).parents[2]
ONEDNN, ATEN = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"
ONEDNN_LIMITS = ("AVX2", "AVX512_CORE", "AVX512_CORE_BF16", None)
"""Rising; None: no limit, which is AMX where the processor has it."""
ATEN_LIMITS = ("avx2", None)
SHOWN_BY = {"AVX512_CORE": "avx512bw", "AVX512_CORE_BF16": "avx512_bf16", "AMX": "amx_bf16"}
"""What a processor must have to show more than the level below: its flag in /proc/cpuinfo."""
LIMIT_S = 900.0
"""For one pair of limits."""

PROBE = """
import torch
torch.set_num_threads(1)
image, weight = torch.ones(2, 64, 40, 40), torch.ones(64, 64, 3, 3)
for dtype in (torch.float32, torch.bfloat16):
    print(f"probe,{dtype}", flush=True)
    torch.nn.functional.conv2d(image.to(dtype), weight.to(dtype), padding=1)
print(f"probe,aten,{torch.backends.cpu.get_cpu_capability()}", flush=True)
"""


@dataclass(frozen=True)
class Limits:
    onednn: str | None
    aten: str | None

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """`given` with these limits and no others."""
        named = {ONEDNN: self.onednn, ATEN: self.aten}
        rest = {name: value for name, value in given.items() if name not in named}
        return rest | {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        return f"{self.onednn or 'no limit'}, {self.aten or 'no limit'}"


@dataclass(frozen=True)
class Effective:
    """What a process under limits really uses."""

    aten: str
    onednn: str
    """oneDNN's own name of the instructions."""
    kernels: tuple[str, str]
    """oneDNN's kernels of a float32 and a bf16 convolution; "none" where torch does not hand it over."""


@dataclass(frozen=True)
class Ran:
    """One run of the tests."""

    tests: int
    failed: tuple[str, ...]
    seconds: float
    trouble: str = ""
    """Why the run as a whole is no good; "" if it is."""

    @property
    def passed(self) -> int:
        return self.tests - len(self.failed)

    @property
    def good(self) -> bool:
        return not self.failed and not self.trouble and self.tests > 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    pairs = [Limits(*pair) for pair in product(ONEDNN_LIMITS, ATEN_LIMITS)]
    effective = {limits: probe(limits) for limits in pairs}
    chosen, same_as = distinct(effective)
    print(f"{processor()}, commit {commit()}; {len(chosen)} pairs of limits\n", flush=True)
    ran: dict[Limits, Ran] = {}
    for limits in chosen:
        print(f"{limits} ...", file=sys.stderr, flush=True)
        ran[limits] = run(limits, arguments.limit_s, arguments.workers, arguments.pytest)
    print("\n".join(table(ran, effective)))
    for line in (*failures(ran), *not_shown(same_as, cpu_flags())):
        print(line)
    return 0 if all(each.good for each in ran.values()) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds for each pair of limits")
    parser.add_argument("--workers", type=int, default=2, help="test processes")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    return parser.parse_args(argv)


# --- the limits -----------------------------------------------------------------------------------------------


def probe(limits: Limits) -> Effective:
    environment = limits.environment(os.environ) | {"ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    asked = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        sys.exit(f"under {limits} torch does not compute:\n{asked.stderr[-2000:]}")
    return effective_of(asked.stdout.splitlines())


def effective_of(lines: Sequence[str]) -> Effective:
    """From what the probe and oneDNN's verbose mode print."""
    aten, onednn, dtype = "?", "?", ""
    kernels = {"torch.float32": "none", "torch.bfloat16": "none"}
    for line in lines:
        words = line.split(",")
        if words[:2] == ["probe", "aten"]:
            aten = words[2]
        elif words[0] == "probe":
            dtype = words[1]
        elif ",info,cpu,isa:" in line:
            onednn = line.partition(",isa:")[2]
        elif ",primitive,exec,cpu,convolution," in line and dtype in kernels:
            kernels[dtype] = words[words.index("convolution") + 1]
    return Effective(aten, onednn, (kernels["torch.float32"], kernels["torch.bfloat16"]))


def distinct(effective: Mapping[Limits, Effective]) -> tuple[list[Limits], dict[Limits, Limits]]:
    """The pairs that are worth a run, and for each of the others the one that it comes to the same as."""
    first: dict[Effective, Limits] = {}
    for limits, used in effective.items():
        first.setdefault(used, limits)
    return list(first.values()), {
        limits: first[used] for limits, used in effective.items() if first[used] is not limits
    }


def not_shown(same_as: Mapping[Limits, Limits], flags: frozenset[str]) -> list[str]:
    """What this processor cannot say."""
    lines = [f"- {limits}: the same as {other} here; not run twice." for limits, other in same_as.items()]
    lacking = [level for level, flag in SHOWN_BY.items() if flag not in flags]
    if lacking:
        lines.append(f"- Not shown, for this processor has no {', no '.join(lacking)}.")
    return ["", *lines] if lines else []


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


# --- the tests ------------------------------------------------------------------------------------------------


def run(limits: Limits, limit_s: float, workers: int, more: Sequence[str]) -> Ran:
    with tempfile.TemporaryDirectory(prefix="fgd-isa-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "numeric and not gpu", f"--junitxml={report}", "--tb=short"]
        command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else ["-p", "no:xdist"]
        environment = limits.environment(os.environ) | {"OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*command, *more],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ran(0, (), time.monotonic() - began, f"stopped after {limit_s:.0f} s")
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1) or not report.exists():  # 1: some failed
            return Ran(0, (), seconds, f"pytest ended with {done.returncode}: {last_line(done.stdout + done.stderr)}")
        if done.returncode:
            print(done.stdout[-20_000:], file=sys.stderr)
        return outcome(report.read_text(), seconds)


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def outcome(report: str, seconds: float) -> Ran:
    """Of pytest's JUnit report; skipped tests are not counted."""
    ran, failed = 0, []
    for case in ET.fromstring(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        ran += 1
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return Ran(ran, tuple(dict.fromkeys(failed)), seconds)


def table(ran: Mapping[Limits, Ran], effective: Mapping[Limits, Effective]) -> list[str]:
    columns = "float32 convolutions | bf16 convolutions | ATen | tests run | passed | failed | seconds"
    head = f"| {ONEDNN} | {ATEN} | {columns} |"
    lines = [head, "|---" * 9 + "|"]
    for limits, each in ran.items():
        used = effective[limits]
        cells = [limits.onednn or "no limit", limits.aten or "no limit", *used.kernels, used.aten]
        cells += [str(each.tests), str(each.passed), each.trouble or str(len(each.failed)), f"{each.seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def failures(ran: Mapping[Limits, Ran]) -> list[str]:
    lines = [f"- {test} under {limits}" for limits, each in ran.items() for test in each.failed]
    return ["", "Failed:", *lines] if lines else []


# --- where ----------------------------------------------------------------------------------------------------


def processor() -> str:
    from fgd.engine.device import processor_name, usable_cores

    return f"{processor_name()}, {usable_cores()} cores"


if __name__ == "__main__":
    sys.exit(main())
