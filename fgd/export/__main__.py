"""A result folder to one ONNX file, checked against torch: `python -m fgd.export FOLDER --onnx student.onnx`.

FOLDER holds student.safetensors and recipe.json, as a job leaves them. The file takes RGB images in 0..1 of one fixed
size and gives final boxes, scores and labels; normalisation and non-maximum suppression are inside. It is written only
if onnxruntime finds in it what torch finds. Beside it is written how to use it.

With --int8 it is quantised then: as much of it as keeps the AP on the data set's validation images. Beside it is
written what that cost. A file that would be slower and worse is not written.

Exit codes: 0; 1 the file would not do what torch does, or is not worth it in INT8, or the weights are broken; 2 the
command line is wrong, or a path on it leads nowhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from fgd.errors import FGDError, SpecError
from fgd.exported import MAX_AP_LOSS
from fgd.process.exit_codes import exit_code, message_of
from fgd.result_files import Which, file_with
from fgd.text.printable import printable

EXTRA = ("torch", "torchvision", "onnx", "onnxruntime")
INSTALL = 'pip install "fgd-service[export]"'
MIN_SIDE, MAX_SIDE = 32, 4096
MOST_IMAGES = 2
"""Of a data set, that are compared on."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        refuse_without_extra()
        from fgd.export.convert import ExportRequest, export
        from fgd.export.int8 import Int8Request

        images = tuple(arguments.image)
        if arguments.int8 and arguments.dataset is None:
            raise SpecError("INT8 needs a data set to calibrate and judge on; name its folder", "--dataset")
        if not arguments.int8 and arguments.max_ap_loss is not None:
            raise SpecError("is of --int8; leave it out", "--max-ap-loss")
        if arguments.dataset is not None and not images:
            images = pictures(arguments.dataset)
        max_ap_loss = MAX_AP_LOSS if arguments.max_ap_loss is None else arguments.max_ap_loss
        wanted = ExportRequest(
            folder=arguments.folder,
            weights=weights_in(arguments.folder, "best" if arguments.best else "last"),
            onnx=arguments.onnx,
            size=arguments.size and (arguments.size[0], arguments.size[1]),
            batch=None if arguments.batch == "dynamic" else int(arguments.batch),
            opset=arguments.opset,
            images=images,
            int8=Int8Request(arguments.dataset, max_ap_loss) if arguments.int8 else None,
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
    parser.add_argument("--int8", action="store_true", help="quantise it; needs --dataset")
    parser.add_argument("--max-ap-loss", type=ap_loss, help=f"AP of 100 that --int8 may lose; default {MAX_AP_LOSS}")
    parser.add_argument(
        "--dataset", type=Path, help="a data set of any format: --int8 uses it, and without --image so does comparing"
    )
    parser.add_argument("--best", action="store_true", help="export the best weights: best.safetensors if it exists")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def weights_in(folder: Path, which: Which) -> str:
    return file_with(which, {path.name for path in folder.iterdir()})


def pictures(dataset: Path) -> tuple[Path, ...]:
    """Those with objects of the commonest size, of val or else of another split."""
    from fgd.data.formats import open_index

    index, root = open_index(dataset)
    images = next((index.splits[name] for name in ("val", "test", "train") if index.splits.get(name)), ())
    images = tuple(image for image in images if image.boxes) or images
    sizes = Counter((image.width, image.height) for image in images)
    ((commonest, _),) = sizes.most_common(1) or (((0, 0), 0),)
    return tuple(root / image.file for image in images if (image.width, image.height) == commonest)[:MOST_IMAGES]


def side(text: str) -> int:
    if not text.isdecimal() or not MIN_SIDE <= int(text) <= MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from {MIN_SIDE} to {MAX_SIDE}")
    return int(text)


def batch(text: str) -> str:
    if text != "dynamic" and not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r} is neither dynamic nor a number from 1 to 64")
    return text


def ap_loss(text: str) -> float:
    try:
        if 0 <= float(text) <= 100:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100")


if __name__ == "__main__":
    sys.exit(main())
