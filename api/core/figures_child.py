"""All figures of a run's detections: `python -m api.core.figures_child DETECTIONS SPLIT`. Knows no rows, no store.

Answers with one JSON object, a SplitFigures or {"error"}, on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from fgd import split_figures
from fgd.process.lifeline import die_with_parent
from fgd.statistics.detections import DetectionsUnreadable, read

CONFUSION_SCORE = 0.3
"""As an evaluation's, if it does not ask for another."""


def main() -> int:
    die_with_parent(None)
    os.nice(10)
    path, split = Path(sys.argv[1]), sys.argv[2]
    try:
        splits = read(path)
        if split not in splits:
            raise DetectionsUnreadable(f"the data set has no {split} images")
    except DetectionsUnreadable as error:
        print(json.dumps({"error": str(error)}))
        return 0
    print(split_figures.of(splits[split], CONFUSION_SCORE).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
