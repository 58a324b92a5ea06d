"""AP of a run on resamples of its images: `python -m api.core.resample_child DETECTIONS SPLIT`. Knows no rows, no
store.

Answers with one JSON object: {"once", "values", "images"}, or {"error"}, on standard output.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

from fgd.process.lifeline import die_with_parent
from fgd.statistics.detections import DetectionsUnreadable, read
from fgd.statistics.intervals import RESAMPLES, drawn
from fgd.statistics.matching import match

FEWEST = 200
MOST_DRAWN = 500_000
"""Images that are drawn in all: 1000 resamples of 500 images, 200 of 2500 and more."""


def main() -> int:
    die_with_parent(None)
    os.nice(10)
    path, split = Path(sys.argv[1]), sys.argv[2]
    try:
        splits = read(path)
        if split not in splits:
            raise DetectionsUnreadable(f"the data set has no {split} images")
        found = drawn(match(splits[split]), resamples(len(splits[split])))
    except DetectionsUnreadable as error:
        print(json.dumps({"error": str(error)}))
        return 0
    values = [None if math.isnan(value) else value for value in found.value_B.tolist()]
    once = None if math.isnan(found.once) else found.once
    print(json.dumps({"once": once, "values": values, "images": found.images}))
    return 0


def resamples(images: int) -> int:
    """As many for all runs of the same images: they are compared resample by resample."""
    return max(FEWEST, min(RESAMPLES, MOST_DRAWN // max(1, images)))


if __name__ == "__main__":
    sys.exit(main())
