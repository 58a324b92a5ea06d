"""An ONNX file for a service: `python -m fgd.export.task NETWORK --onnx FILE --out ANSWER [--dataset FOLDER]`.

As `python -m fgd.export`, but it takes the pictures that it compares on from a data set, and answers with one JSON
object: {"result": {...}}, or {"error": {"code", "message", "pointer"}}.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from fgd.errors import SpecError
from fgd.export.__main__ import batch, refuse_without_extra, side, weights_in
from fgd.exported import ExportResult
from fgd.process import answer

MOST_IMAGES = 2
"""Of a data set, that are compared on."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return answer.answered(arguments, lambda: {"result": exported(arguments).model_dump(mode="json")})


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.export.task", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path, help="student.safetensors and recipe.json")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write")
    parser.add_argument("--dataset", type=Path, help="a data set of any format, on whose pictures it is compared")
    parser.add_argument("--size", type=side, nargs=2, metavar=("H", "W"))
    parser.add_argument("--batch", type=batch, default="1")
    parser.add_argument("--opset", type=int, default=18)
    answer.add_options(parser)
    return parser.parse_args(argv)


def exported(asked: argparse.Namespace) -> ExportResult:
    """Raises FGDError if the file would not do what torch does."""
    refuse_without_extra()
    from fgd.export.convert import ExportRequest, export

    images = pictures(asked.dataset) if asked.dataset is not None else ()
    wanted = ExportRequest(
        folder=asked.network,
        weights=weights_in(asked.network, "last"),
        onnx=asked.onnx,
        size=asked.size and (asked.size[0], asked.size[1]),
        batch=None if asked.batch == "dynamic" else int(asked.batch),
        opset=asked.opset,
        images=images,
    )
    try:
        made = export(wanted)
    except SpecError as error:  # it names an option: here a field of the request
        raise SpecError(error.message, error.pointer.replace("--", "/")) from error
    names = ", ".join(path.name for path in images)
    told = f"{len(images)} picture{'s' * (len(images) != 1)} of the data set"
    compared_on = made.compared_on.replace(names, told) if names else made.compared_on
    return ExportResult.model_validate(made.figures() | {"format": "onnx", "compared_on": compared_on})


def pictures(dataset: Path) -> tuple[Path, ...]:
    """Those with objects of the commonest size, of val or else of another split."""
    from fgd.data.formats import open_index

    index, root = open_index(dataset)
    images = next((index.splits[name] for name in ("val", "test", "train") if index.splits.get(name)), ())
    images = tuple(image for image in images if image.boxes) or images
    sizes = Counter((image.width, image.height) for image in images)
    ((commonest, _),) = sizes.most_common(1) or (((0, 0), 0),)
    return tuple(root / image.file for image in images if (image.width, image.height) == commonest)[:MOST_IMAGES]


if __name__ == "__main__":
    sys.exit(main())
