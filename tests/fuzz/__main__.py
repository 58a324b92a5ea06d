"""`make fuzz MINUTES=20`: random inputs for everything that reads what strangers send; a table; exit 1 on a fault.

python -m tests.fuzz [--minutes 20] [--seed 0] [--only WORD]         all targets by turns, the same time each
python -m tests.fuzz --only COCO --seed 0 --number 4711 --into F     write that one input into the folder F
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.runner import Counts, input_of, run
from tests.fuzz.targets import Target, targets

BATCH_S, MOST = 3.0, 5000
"""Of one child, and its inputs: the next has a memory that nothing before it has grown."""
COLUMNS = ("target", "inputs", "refused", "accepted", "crashes", "over 10 s", "over 1 GB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORD", help="targets whose name has it")
    parser.add_argument("--number", type=int, help="of one input, to be looked at")
    parser.add_argument("--into", type=Path, default=Path("input"))
    arguments = parser.parse_args()
    chosen = [target for target in targets() if arguments.only in target.name]
    if arguments.number is not None:
        keep(input_of(chosen[0], arguments.seed, arguments.number), arguments.into)
        return 0
    counts = fuzz(chosen, arguments.minutes * 60, arguments.seed)
    print("\n".join(table(counts)))
    for name, found in counts.items():
        for what, number in found.seen.items():
            print(f"{name}: input {number} of seed {arguments.seed}: {what}", file=sys.stderr)
    return 1 if any(found.faults for found in counts.values()) else 0


def fuzz(chosen: list[Target], seconds: float, seed: int) -> dict[str, Counts]:
    """By turns, each time the one that has had the least of it."""
    counts = {target.name: Counts() for target in chosen}
    spent = dict.fromkeys(counts, 0.0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        target = min(chosen, key=lambda target: spent[target.name])
        began, done = time.monotonic(), counts[target.name].inputs
        rate = done / spent[target.name] if done else 1.0
        run(target, seed, done, max(10, min(MOST, int(rate * BATCH_S))), counts[target.name])
        spent[target.name] += time.monotonic() - began
    return counts


def table(counts: dict[str, Counts]) -> list[str]:
    """For docs/studies.md."""
    rows = [(name, c.inputs, c.refused, c.accepted, c.crashes, c.slow, c.large) for name, c in counts.items()]
    total = ("all", *(sum(row[column] for row in rows) for column in range(1, 7)))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * 6]
    return [
        *lines,
        *("| " + " | ".join([row[0], *(f"{n:,}".replace(",", " ") for n in row[1:])]) + " |" for row in (*rows, total)),
    ]


def keep(item: object, folder: Path) -> None:
    files = item if isinstance(item, dict) else {"input": item}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{len(files)} files in {folder}")


if __name__ == "__main__":
    sys.exit(main())
