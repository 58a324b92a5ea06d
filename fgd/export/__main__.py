"""A result folder to one ONNX file, checked against torch: `python -m fgd.export FOLDER --onnx student.onnx`.

FOLDER holds student.safetensors and recipe.json, as a job leaves them. The file takes RGB images in 0..1 of one fixed
size and gives final boxes, scores and labels; normalisation and non-maximum suppression are inside. It is written only
if onnxruntime finds in it what torch finds. Beside it is written how to use it.

Exit codes: 0; 1 the file would not do what torch does, or the weights are broken; 2 the command line is wrong, or a
path on it leads nowhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from fgd.errors import FGDError, SpecError
from fgd.process.exit_codes import exit_code, message_of
from fgd.result_files import Which, file_with
from fgd.text.printable import printable

EXTRA = ("torch", "torchvision", "onnx", "onnxruntime")
INSTALL = 'pip install "fgd-service[export]"'
MIN_SIDE, MAX_SIDE = 32, 4096


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        refuse_without_extra()
        from fgd.export.convert import ExportRequest, export

        wanted = ExportRequest(
            folder=arguments.folder,
            weights=weights_in(arguments.folder, "best" if arguments.best else "last"),
            onnx=arguments.onnx,
            size=arguments.size and (arguments.size[0], arguments.size[1]),
            batch=None if arguments.batch == "dynamic" else int(arguments.batch),
            opset=arguments.opset,
            images=tuple(arguments.image),
        )
        made = export(wanted)
    except (FGDError, OSError) as error:
        print("error:", printable(message_of(error), keep="\n"), file=sys.stderr)
        return exit_code(error)
    if arguments.json:
        print(json.dumps(made.figures()))
    else:
        made.show()
    return 0


def refuse_without_extra() -> None:
    """Raises SpecError that says what to install."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise SpecError(f"the export needs {', '.join(missing)}: {INSTALL}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="student.safetensors and recipe.json")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--size",
        type=side,
        nargs=2,
        metavar=("H", "W"),
        help="default: the size that evaluation gives --image, otherwise min_size x max_size of the job",
    )
    parser.add_argument("--batch", type=batch, default="1", help="a number from 1 to 64, or dynamic")
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="compare on this image; may be repeated"
    )
    parser.add_argument("--best", action="store_true", help="export the best weights: best.safetensors if it exists")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def weights_in(folder: Path, which: Which) -> str:
    return file_with(which, {path.name for path in folder.iterdir()})


def side(text: str) -> int:
    if not text.isdecimal() or not MIN_SIDE <= int(text) <= MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from {MIN_SIDE} to {MAX_SIDE}")
    return int(text)


def batch(text: str) -> str:
    if text != "dynamic" and not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r} is neither dynamic nor a number from 1 to 64")
    return text


if __name__ == "__main__":
    sys.exit(main())
