"""Loads downloaded students into plain torchvision and times them. Prints one JSON object.

    python -m fgd.export.measure FOLDER... --images FILE...

A folder holds student.safetensors and model.py. This is what a user can do with those files alone: nothing of this
project is imported, and the weights must fit strictly. Runs model.py, so point it at folders you trust.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fgd.result_files import WEIGHTS

WARM_UP = 3
"""Passes not counted: the first ones allocate."""


def load(folder: Path) -> nn.Module:
    """The network that model.py builds, with the weights beside it. Raises RuntimeError if a tensor does not fit."""
    network = runpy.run_path(str(folder / "model.py"))["build"]()
    assert isinstance(network, nn.Module)
    network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return network.eval()


def read_image(path: Path) -> torch.Tensor:
    """Float CHW in 0..1, as torchvision's detectors take it."""
    with Image.open(path) as image:
        pixels_HWC = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255


def passes_ms(
    networks: Sequence[nn.Module], images: Sequence[torch.Tensor], passes: int, limit_s: float
) -> list[list[float]]:
    """Milliseconds of each pass of each network, one image at a time; fewer passes if `limit_s` is over before.

    Networks take turns, so that whatever else the machine does meets all of them alike.
    """
    until = time.monotonic() + limit_s
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in range(WARM_UP + passes):
            if turn > WARM_UP and time.monotonic() > until:
                break
            image_CHW = images[turn % len(images)]
            for network, taken in zip(networks, times, strict=True):
                start = time.perf_counter()
                (found,) = network([image_CHW])
                taken.append(1000 * (time.perf_counter() - start))
                if not bool(torch.isfinite(found["boxes"]).all()):
                    raise RuntimeError("a box is not finite")
    return [taken[WARM_UP:] for taken in times]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fgd.export.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", nargs="+", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--limit-s", type=float, default=30.0, help="a slow machine runs fewer passes")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    networks = [load(folder) for folder in arguments.folders]
    images = [read_image(path) for path in arguments.images]
    times = passes_ms(networks, images, arguments.passes, arguments.limit_s)
    measured = [
        {
            "folder": str(folder),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "ms": statistics.median(taken),
        }
        for folder, network, taken in zip(arguments.folders, networks, times, strict=True)
    ]
    print(json.dumps({"threads": torch.get_num_threads(), "passes": len(times[0]), "networks": measured}))


if __name__ == "__main__":
    main()
