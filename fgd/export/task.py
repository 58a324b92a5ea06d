"""An ONNX file for a service: `python -m fgd.export.task NETWORK --onnx FILE --out ANSWER [--dataset FOLDER]`.

As `python -m fgd.export`, but it answers with one JSON object: {"result": {...}}, or {"error": {"code", "message",
"pointer"}}, whose pointer is a field of the service's request.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fgd.errors import SpecError
from fgd.export.__main__ import ap_loss, batch, pictures, refuse_without_extra, side, weights_in
from fgd.exported import MAX_AP_LOSS, ExportResult
from fgd.process import answer

FIELDS = {"--batch": "/batch", "--opset": "/opset", "--onnx": "", "--int8": "/format", "--max-ap-loss": "/max_ap_loss"}
"""Of the request, that become these options."""


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
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--max-ap-loss", type=ap_loss, default=MAX_AP_LOSS)
    answer.add_options(parser)
    return parser.parse_args(argv)


def exported(asked: argparse.Namespace) -> ExportResult:
    """Raises FGDError if the file would not do what torch does."""
    refuse_without_extra()
    from fgd.export.convert import ExportRequest, export
    from fgd.export.int8 import Int8Request, NotWorthIt

    images = pictures(asked.dataset) if asked.dataset is not None else ()
    wanted = ExportRequest(
        folder=asked.network,
        weights=weights_in(asked.network, "last"),
        onnx=asked.onnx,
        size=asked.size and (asked.size[0], asked.size[1]),
        batch=None if asked.batch == "dynamic" else int(asked.batch),
        opset=asked.opset,
        images=images,
        called=f"{len(images)} picture{'s' * (len(images) != 1)} of the data set" * bool(images),
        int8=Int8Request(asked.dataset, asked.max_ap_loss) if asked.int8 else None,
    )
    try:
        return export(wanted).result()
    except SpecError as error:
        raise SpecError(error.message, FIELDS.get(error.pointer, error.pointer)) from error
    except NotWorthIt as error:
        raise NotWorthIt(str(error), FIELDS[error.pointer]) from error


if __name__ == "__main__":
    sys.exit(main())
