"""A trainer without training: the command line, event lines, files and exits of `fgd.train`, in milliseconds.

Every word `key=value` of the spec's name is an instruction:

    steps=40 ms=5 save=10     how many steps, how long each takes, steps between checkpoints
    fault=KIND at=N           from step N on: exit | segv | hang | ignore-term | nan | no-manifest | bad-lines |
                              oom-text | oom-over | no-space | flood | daemon | close-pipe
    fits=N                    for oom-over: batches of more than N images are out of memory
    classes=0                 how many the data set has: each has an AP
    pad=0                     KiB that each checkpoint is larger than it need be
    once=1                    the fault strikes the first attempt only

The weights are a hash over all steps taken: a run resumed from a checkpoint ends with the same ones as a run that was
never broken, and any other history does not.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from fgd.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    Note,
    Phase,
    Saved,
    Started,
    Stepped,
    to_lines,
)
from fgd.process.failpoints import reach
from fgd.process.finish_file import asked_to_finish
from fgd.process.lifeline import die_with_parent
from fgd.spec import JobSpec

stopping = False


def stop(number: int, frame: FrameType | None) -> None:
    global stopping
    stopping = True


def main() -> int:
    arguments = parse()
    die_with_parent(arguments.parent_fd)
    signal.signal(signal.SIGTERM, stop)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spec = JobSpec.model_validate_json(arguments.spec.read_bytes())
    words = dict(word.split("=", 1) for word in spec.name.split() if "=" in word)
    if words.get("once") and "a1" not in arguments.out.parts:
        words.pop("fault", None)
    with os.fdopen(arguments.events_fd, "wb", buffering=0) as pipe:
        return train(spec, words, arguments.out, arguments.resume, pipe)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--events-fd", type=int, default=1)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--dataset-name")
    return parser.parse_args()


def train(spec: JobSpec, words: dict[str, str], out: Path, resume: Path | None, pipe: BinaryIO) -> int:
    def emit(event: Event) -> None:
        pipe.write(to_lines(event))

    steps, step_s, save = int(words.get("steps", 40)), int(words.get("ms", 5)) / 1000, int(words.get("save", 10))
    fault, at, fits = words.get("fault"), int(words.get("at", 3)), int(words.get("fits", 1))
    step, history = load(resume)
    if step:
        emit(Note(code="resumed", message=f"goes on after step {step}", data={"step": step}))
    emit(Phase(phase="training"))
    emit(
        Started(
            step=step, total_steps=steps, epochs=1, device="cpu", threads=1, precision="float32",
            versions={"scripted": "1"},
        )
    )  # fmt: skip
    print(f"training from step {step} of {steps}", file=sys.stderr, flush=True)
    while step < steps and not (step and asked_to_finish(out)):
        if fault == "ignore-term" and step == at:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif fault and step >= at and (code := strike(fault, step, pipe, emit, spec, fits)) is not None:
            return code
        time.sleep(step_s)
        step, history = step + 1, hashlib.sha256(f"{history}{step}".encode()).hexdigest()
        emit(Stepped(step=step, epoch=1, values={"loss/total": 1.0 / step, "images_per_s": 100.0}))
        if stopping or step % save == 0:
            emit(checkpoint(out, step, history, int(words.get("pad", 0))))
        if stopping:
            return 75
    of_classes = {f"ap/class {n}": float(n % 100) for n in range(int(words.get("classes", 0)))}
    emit(Evaluated(step=step, epoch=1, split="val", values={"ap": 40.0, "ap50": 70.0, **of_classes}))
    if fault == "no-manifest":
        return 0
    emit(result(spec, out, step, history))
    return 0


def strike(fault: str, step: int, pipe: BinaryIO, emit: object, spec: JobSpec, fits: int) -> int | None:
    """Do the harm; None: go on training."""
    assert callable(emit)
    if fault == "exit":
        print("ValueError: scripted", file=sys.stderr)
        return 3
    if fault == "oom-text":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr)
        return 1
    if fault == "oom-over" and spec.schedule.batch_size > fits:
        emit(Failed(code="gpu_out_of_memory", message="CUDA out of memory"))
        return 1
    if fault == "no-space":
        print("OSError: [Errno 28] No space left on device: 'step-20.partial'", file=sys.stderr)
        return 1
    if fault == "nan":
        emit(Failed(code="loss_non_finite", message=f"step {step}: loss/total is nan", data={"step": step}))
        return 1
    if fault == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(3600)
    if fault == "close-pipe":
        pipe.close()
        time.sleep(3600)
    if fault == "bad-lines":
        pipe.write(b'not json\n{"type": "from the future"}\n' + b"x" * 200_000 + b"\n\xff\xfe\n")
    if fault == "flood":
        os.write(2, b"noise " * 100_000)
    if fault == "daemon":  # a grandchild that leaves the group, as a careless library would start
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
        return 1
    return None


def load(resume: Path | None) -> tuple[int, str]:
    if resume is None:
        return 0, ""
    saved = json.loads(resume.read_text())
    return saved["step"], saved["history"]


def checkpoint(out: Path, step: int, history: str, pad_kib: int = 0) -> Saved:
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"step": step, "history": history}).encode() + b" " * pad_kib * 1024
    path = folder / f"step-{step}.pt"
    reach("before_checkpoint_file")
    path.with_suffix(".tmp").write_bytes(content)
    reach("checkpoint_file_unnamed")
    path.with_suffix(".tmp").rename(path)
    reach("after_checkpoint_file")
    for old in sorted(folder.glob("*.pt"), key=lambda p: int(p.stem[5:]))[:-2]:
        old.unlink()
    return Saved(step=step, path=str(path), sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def result(spec: JobSpec, out: Path, step: int, history: str) -> Finished:
    folder = out / "result"
    folder.mkdir(parents=True, exist_ok=True)
    weights = hashlib.sha256(history.encode()).digest()
    header = json.dumps({"w": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}).encode()
    contents = {
        "student.safetensors": len(header).to_bytes(8, "little") + header + weights,
        "model.py": b"def build():\n    raise SystemExit('scripted')\n",
        "recipe.json": spec.model_dump_json().encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents["manifest.json"] = json.dumps({"files": digests, "weights_digest": weights.hex()}).encode()
    digests["manifest.json"] = hashlib.sha256(contents["manifest.json"]).hexdigest()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return Finished(step=step, folder=str(folder), files=digests, weights_digest=weights.hex())


if __name__ == "__main__":
    sys.exit(main())
