"""Counts the boxes of each class: `python -m worker.tally_child INDEX ANSWER LISTING`. Knows no rows, no store."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from fgd.data.index import Index
from fgd.process.lifeline import die_with_parent


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("index", type=Path)
    parser.add_argument("answer", type=Path)
    parser.add_argument("listing", type=Path)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--events-fd", type=int, help="not used: there are no steps")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_fd)
    try:
        index = Index.model_validate_json(arguments.index.read_bytes())
    except ValueError as error:
        told = {"code": "user_error", "message": f"the data set has no index that can be read: {error}"}
        arguments.answer.write_text(json.dumps({"error": told}))
        return 1
    images = [image for split in index.splits.values() for image in split]
    counts = Counter(index.classes[label - 1] for image in images for label in image.labels)
    arguments.listing.write_text("".join(f"{image.name}\t{len(image.boxes)}\n" for image in images))
    arguments.answer.write_text(json.dumps({"counts": {name: counts[name] for name in index.classes}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
