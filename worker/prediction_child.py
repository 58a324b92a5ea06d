"""Finds objects in a stranger's picture, in a process of its own, where nothing can be reached.

    python -m worker.prediction_child PICTURE ROLE=FOLDER... --score S --out ANSWER [--parent-fd N]

Each FOLDER has student.safetensors and recipe.json. ANSWER lies in a folder of its own, the only one that is written
to: {"result": {...}}, or {"error": {"code", "message"}} with exit code 1. The supervisor starts it, and never imports
it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from fgd.process.lifeline import DEADLINE, die_with_parent
from worker.confinement import confine_files, confine_process
from worker.limits import be_killed_first, limit, memory_exceeded

MINUTES = 5.0
"""Of the processor, for each of four threads."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path)
    parser.add_argument("networks", nargs="+", metavar="ROLE=FOLDER")
    parser.add_argument("--score", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--events-fd", type=int, help="unused: there are no steps")
    arguments = parser.parse_args()
    networks = {role: Path(folder) for role, _, folder in (each.partition("=") for each in arguments.networks)}
    be_killed_first()
    deadline = [Path(os.environ[DEADLINE])] if DEADLINE in os.environ else []
    if not confine_files(arguments.out.parent, [arguments.picture, *networks.values(), *deadline]):
        print("this kernel has no Landlock: only permissions guard this host's files", file=sys.stderr)
    die_with_parent(arguments.parent_fd)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fgd.data import images  # before the confinement: loading torch needs more than reading a file
    from fgd.engine import predict, weights
    from fgd.errors import UserError
    from fgd.predicted import PredictionResult

    memory = limit(MINUTES)
    if not confine_process():
        print("this system cannot filter system calls: nothing guards this host's network", file=sys.stderr)
    try:
        orientation = images.probe(arguments.picture, "headers").orientation
        picture = predict.upright(images.decode(arguments.picture), orientation)
        found = []
        for role, folder in networks.items():
            detector = weights.load_detector(folder)
            began = time.monotonic()
            detections = predict.predict(detector, picture, arguments.score)
            found.append({"role": role, "detections": detections, "seconds": time.monotonic() - began})
        size = {"width": picture.width, "height": picture.height, "orientation": orientation}
        result = PredictionResult.model_validate({**size, "networks": found})
    except images.BadImage as error:
        return refuse(arguments.out, error.code, f"the picture: {error}")
    except UserError as error:
        return refuse(arguments.out, error.code, str(error))
    except MemoryError:
        return refuse(arguments.out, "host_out_of_memory", memory_exceeded(memory))
    arguments.out.write_text(json.dumps({"result": result.model_dump(mode="json")}))
    return 0


def refuse(out: Path, code: str, message: str) -> int:
    out.write_text(json.dumps({"error": {"code": code, "message": message}}))
    return 1


if __name__ == "__main__":
    sys.exit(main())
