"""What only a machine with a GPU can show, in at most eight minutes and without a network.

    python3 -m tests.studies.gpu run --wheels FOLDER     # what `make gpu WHEELS=FOLDER` does
    python -m tests.studies.gpu fill FOLDER              # `make gpu-wheels`, before, on a machine with a network and
                                                         # the same version of Python

torch and torchvision are taken as they are on that machine, from the Python that runs this. What else is needed and not
there is installed from FOLDER, into an environment below --out that leaves the machine's own as it is.

The items: the tests marked `gpu`; the ratios of a step and of the whole pipeline (bench.py); a small distillation; two
ranks over NCCL where there are two cards. Each has a limit of its own, and all together --limit-s. Where torch finds no
card the items that have a form for the processor are rehearsed there, tiny: that shows that the command works, and no
figure of it means anything.

Prints one table in Markdown, and what could not be run and why; the whole output of each item lies below --out. Exit
code: 0 if nothing that could be run failed; 1 if something failed or ran out of its time; 2 if there is no torch, or no
environment could be made.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.studies.checkout import commit

ROOT = Path(__file__).parents[2]
TOTAL_S = 480.0
LEAST_S = 10.0
"""An item that would get less is not begun."""

NEEDED = {
    "faster-coco-eval": "faster_coco_eval",
    "hypothesis": "hypothesis",
    "numpy": "numpy",
    "nvidia-ml-py": "pynvml",
    "pillow": "PIL",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pytest": "pytest",
    "pytest-timeout": "pytest_timeout",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
}
"""Distribution -> module, of what the items import besides torch and torchvision."""
FOR_TESTS = frozenset({"hypothesis", "pytest", "pytest-timeout", "nvidia-ml-py"})

FACTS = """
import importlib.util, json, sys
import torch, torchvision
cards = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
lacking = [name for name, module in json.loads(sys.argv[1]).items() if importlib.util.find_spec(module) is None]
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__, "cards": cards,
    "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(), "lacking": lacking}))
"""


@dataclass(frozen=True)
class Facts:
    """Of the machine, as the environment's Python sees it."""

    torch: str
    torchvision: str
    cards: tuple[str, ...] = ()
    nccl: bool = False
    lacking: tuple[str, ...] = ()
    """Distributions of NEEDED that are not there."""

    @property
    def device(self) -> str:
        return "cuda" if self.cards else "cpu"


@dataclass(frozen=True)
class Item:
    name: str
    limit_s: float
    command: Callable[[str, Path], list[str]]
    """Of the device and a folder of its own: what is run, behind the interpreter."""
    figure: Callable[[str], str]
    """From its output."""
    needs: frozenset[str] = frozenset()
    """Of NEEDED, besides what all need."""
    cards: int = 1
    rehearsed: bool = False
    """Whether it has a form for the processor."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    item: str
    ran: str
    figure: str
    seconds: float = 0.0
    failed: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return fill(arguments) if arguments.what == "fill" else run(arguments)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    running = commands.add_parser("run", help="on the machine with the GPU")
    running.add_argument("--wheels", type=Path, help="folder that `fill` has filled")
    running.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    running.add_argument("--limit-s", type=float, default=TOTAL_S, help="for all of it")
    running.add_argument("--items", nargs="+", choices=[each.name for each in ITEMS], help="only these")
    filling = commands.add_parser("fill", help="on a machine with a network and the installed lock")
    filling.add_argument("folder", type=Path)
    filling.add_argument("pip", nargs="*", help="behind --, options of pip download, such as --platform")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        python, facts = environment(out, arguments.wheels)
    except NoEnvironment as error:
        print(error)
        return 2
    print(f"{', '.join(facts.cards) or 'no card'}; torch {facts.torch}, torchvision {facts.torchvision}, ", end="")
    print(f"Python {sys.version.partition(' ')[0]}, commit {commit()}\n", flush=True)
    rows = [Row("environment", "yes", f"{python}", time.monotonic() - began)]
    asked = [item for item in ITEMS if not arguments.items or item.name in arguments.items]
    for place, item in enumerate(asked):
        later = [each for each in asked[place + 1 :] if not cannot(each, facts)]
        limit_s = allowed_s(item, later, arguments.limit_s - (time.monotonic() - began))
        if why := cannot(item, facts) or ("no time is left" if limit_s < LEAST_S else ""):
            rows.append(Row(item.name, "no", why))
            continue
        print(f"{item.name} ...", file=sys.stderr, flush=True)
        rows.append(carry_out(item, facts, python, out, limit_s))
    print("\n".join(table(rows)))
    return 1 if any(row.failed for row in rows) else 0


# --- what can be run, and for how long ------------------------------------------------------------------------


def cannot(item: Item, facts: Facts) -> str:
    """Why not; "" if it can."""
    if lacking := sorted(set(facts.lacking) & (item.needs | (NEEDED.keys() - FOR_TESTS))):
        return f"not installed, and no wheel was given: {', '.join(lacking)}"
    if not facts.cards and not item.rehearsed:
        return "torch finds no CUDA device"
    if facts.cards and len(facts.cards) < item.cards:
        return f"needs {item.cards} cards, there is {len(facts.cards)}"
    if item.cards > 1 and not facts.nccl:
        return "this torch has no NCCL"
    return ""


def allowed_s(item: Item, later: Sequence[Item], left_s: float) -> float:
    """Its own limit, and what the items after it do not claim."""
    return min(left_s, max(item.limit_s, left_s - sum(each.limit_s for each in later)))


def table(rows: Sequence[Row]) -> list[str]:
    lines = ["| item | ran? | figure | seconds |", "|---|---|---|---|"]
    for row in rows:
        figure = row.figure if row.ran != "no" else ""
        lines.append(f"| {row.item} | {row.ran} | {figure} | {f'{row.seconds:.0f}' if row.seconds else ''} |")
    left_out = [f"- {row.item}: {row.figure}" for row in rows if row.ran == "no"]
    rehearsed = [row.item for row in rows if row.ran == REHEARSED]
    if rehearsed:
        left_out.append(f"- {', '.join(rehearsed)}: only rehearsed, tiny, for torch finds no CUDA device")
    return [*lines, "", "Not run here:" if left_out else "All of it ran.", *left_out]


# --- the items ------------------------------------------------------------------------------------------------

REHEARSED = "on the processor"
LARGE = ["--rounds", "10", "--images", "64", "--batch", "16"]
TINY = ["--rounds", "1", "--images", "4", "--batch", "2", "--min-size", "64", "--max-size", "96", "--precisions"]
TINY += ["float32"]
"""Of bench.py, on a GPU and on the processor."""


def gpu_tests(device: str, folder: Path) -> list[str]:
    files = [str(path.relative_to(ROOT)) for path in marked_gpu() if path.name != "test_distributed.py"]
    return ["-m", "pytest", "-m", "gpu", "-rfE", "--tb=short", *files]


def marked_gpu() -> list[Path]:
    return sorted(path for path in (ROOT / "tests" / "unit").rglob("test_*.py") if "mark.gpu" in path.read_text())


def two_ranks(device: str, folder: Path) -> list[str]:
    return ["-m", "pytest", "-m", "gpu", "-rfE", "--tb=short", "tests/unit/engine/test_distributed.py"]


def bench(item: str) -> Callable[[str, Path], list[str]]:
    def command(device: str, folder: Path) -> list[str]:
        return ["tests/studies/bench.py", "--items", item, "--device", device, *(LARGE if device == "cuda" else TINY)]

    return command


def distillation(device: str, folder: Path) -> list[str]:
    return ["-m", "tests.studies.small_distillation", "--device", device, "--out", str(folder)]


def of_pytest(output: str) -> str:
    """What pytest says in its last line, and the names of what failed."""
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|deselected)", last_line(output))
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return "; ".join([", ".join(each for each in counts if "deselected" not in each), *failed])


def of_step(output: str) -> str:
    for cells in rows_of(output):
        if cells[0] == "clock":
            return f"{cells[1]} ms; as loaded / ours {cells[4]}; ours / floor {cells[5]}"
    return ""


def of_pipeline(output: str) -> str:
    of_precisions = [cells for cells in rows_of(output) if cells[0].startswith(("float32", "bf16"))]
    told = "{0}: {1} images/s, {4} of the tutorial's, {6} of the floor's, waits {8} for data"
    return "; ".join(told.format(cells[0].partition(" ")[0], *cells[1:]) for cells in of_precisions)


def rows_of(output: str) -> Iterator[list[str]]:
    """The cells of each line of a table in Markdown."""
    for line in output.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")


ITEMS = (
    Item("gpu tests", 130, gpu_tests, of_pytest, needs=FOR_TESTS),
    Item("step", 75, bench("step"), of_step, rehearsed=True),
    Item("pipeline", 80, bench("pipeline"), of_pipeline, rehearsed=True),
    Item("distillation", 90, distillation, last_line, rehearsed=True),
    Item("two ranks", 75, two_ranks, of_pytest, needs=FOR_TESTS, cards=2),
)
"""Their limits leave half a minute for the environment."""


def carry_out(item: Item, facts: Facts, python: Path, out: Path, limit_s: float) -> Row:
    slug = item.name.replace(" ", "-")
    with tempfile.TemporaryDirectory(prefix=f"fgd-{slug}-") as folder:
        command = [str(python), *item.command(facts.device, Path(folder))]
        code, output, seconds = bounded(command, limit_s, out / f"{slug}.log")
    ran = "yes" if facts.cards else REHEARSED
    if code is None:
        return Row(item.name, ran, f"**stopped after {limit_s:.0f} s**", seconds, failed=True)
    if code:
        print(f"--- {item.name} ended with {code}; {out / f'{slug}.log'} ends so:\n{output[-3000:]}\n", file=sys.stderr)
        return Row(item.name, ran, f"**failed**: {item.figure(output) or last_line(output)}", seconds, failed=True)
    return Row(item.name, ran, item.figure(output), seconds)


def bounded(command: Sequence[str], limit_s: float, log: Path) -> tuple[int | None, str, float]:
    """Exit code, output and seconds; the code is None for one that was ended with all its children."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text(errors="replace"), time.monotonic() - began


# --- the environment ------------------------------------------------------------------------------------------


class NoEnvironment(Exception):
    """Nothing can be run here."""


def environment(out: Path, wheels: Path | None) -> tuple[Path, Facts]:
    """The Python to run the items with, and what it finds: this one where it lacks nothing, else that of an environment
    in `out` which sees all that this one has."""
    here = Path(sys.executable)
    facts = facts_of(here)
    if not facts.lacking or wheels is None:
        return here, facts
    python = out / "venv" / "bin" / "python"
    if not python.exists():
        make_venv(python.parents[1])
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-index", "--find-links", str(wheels.resolve())]
    wanted = requirements(facts.lacking)
    if call([*install, *wanted]).returncode:
        for each in wanted:  # what is there is better than nothing
            done = call([*install, each])
            if done.returncode:
                print(f"{each}: {last_line(done.stderr)}", file=sys.stderr)
    return python, facts_of(python)


def make_venv(folder: Path) -> None:
    """Sees this Python's packages wherever they lie: in the system, in an environment or in a conda one."""
    done = call(["-m", "venv", "--without-pip", str(folder)])
    if done.returncode:
        raise NoEnvironment(f"no environment could be made: {last_line(done.stdout + done.stderr)}")
    (site,) = (folder / "lib").glob("python*/site-packages")
    ours = [each for each in sys.path if each.endswith(("site-packages", "dist-packages"))]
    (site / "parent.pth").write_text("\n".join(ours) + "\n")


def facts_of(python: Path) -> Facts:
    done = subprocess.run(
        [str(python), "-c", FACTS, json.dumps(NEEDED)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise NoEnvironment(f"{python} has no torch and torchvision to run with: {last_line(done.stderr)}")
    told = json.loads(last_line(done.stdout))
    return Facts(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


def requirements(names: Sequence[str]) -> list[str]:
    """As pyproject.toml states them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    by_name = {name_of(each): each for each in stated}
    return [by_name.get(name, name) for name in names]


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found.group().lower()) if found else ""


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


# --- the folder of wheels -------------------------------------------------------------------------------------


def fill(arguments: argparse.Namespace) -> int:
    """The versions and sums of the lock, of what the items need and of all that these need themselves."""
    pins = pinned((ROOT / "requirements.lock").read_text())
    names = closure(NEEDED, importlib.metadata.requires)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins[name] for name in names if name in pins) + "\n")
        file.flush()
        command = ["-m", "pip", "download", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(arguments.folder), "-r", file.name, *arguments.pip]
        return subprocess.run([sys.executable, *command], check=False).returncode


def pinned(lock: str) -> dict[str, str]:
    """Name -> its lines in the lock, sums and all: one block for each version, where Pythons differ."""
    blocks: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if "==" in block.partition("\n")[0]:
            blocks.setdefault(name_of(block), []).append(block.rstrip())
    return {name: "\n".join(of_versions) for name, of_versions in blocks.items()}


def closure(names: Mapping[str, object], requires: Callable[[str], Sequence[str] | None]) -> list[str]:
    """With what these need, without their extras. What a distribution that is not installed needs is not known."""
    found: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = name_of(queue.pop(0))
        if name in found:
            continue
        found[name] = None
        try:
            stated = requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            stated = ()
        queue += [name_of(each) for each in stated if "extra ==" not in each]
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
