"""Weights from elsewhere, made ours: read without executing, checked strictly, written as safetensors and recipe.json.

Run it in a confined process (`worker.model_importer`): `weights_only` keeps a pickle from naming code, the
confinement is for the day it fails. Knows no rows and no store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fgd import weights_file
from fgd.detectors import build, family_of
from fgd.engine import checkpoint, recognise, weights
from fgd.engine.foreign_state import NamedTensor, Take, named_tensors, unwrapped
from fgd.engine.weights import Difference
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import RECIPE, WEIGHTS, Which
from fgd.stored import stored_recipe
from fgd.text.cut import cut, some
from fgd.weights_file import Kind

STUDENT = "student.module."
"""Before the network's keys in a checkpoint of our own trainer."""
AVERAGED = "module."
"""Before them in the averaged weights that it holds, if any."""
MAX_KEYS = 100
"""Named in a report, of each kind, and cut where they are long; the counts are whole."""


class Misfit(WeightsError):
    """`report` has the whole difference, for programs."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message, report)
        self.message = message
        self.report = report

    def __str__(self) -> str:
        return self.message


@dataclass
class ImportedWeights:
    """What was read, as the model's report tells it."""

    format: Kind
    file_bytes: int
    tensors: int = 0
    parameters: int = 0
    wrapper: str | None = None
    """Where in the file the state dict lay: "ema.module"."""
    prefix: str | None = None
    """Taken off the keys."""
    take: Take | None = None
    """Whether averaged or raw weights were taken, of a file that has averaged ones."""
    left_out: list[str] = field(default_factory=list)
    """What lay beside it, the first of them."""
    unwrapping: list[str] = field(default_factory=list)
    """What was done to choose and to rename tensors."""
    cast: dict[str, int] = field(default_factory=dict)
    """dtype -> tensors that were of it and are of the network's now."""
    weights_digest: str = ""
    step: int | None = None
    """Steps after which a training had these weights; None: the file does not say."""

    @property
    def notes(self) -> list[str]:
        said = [f"the state dict was under {self.wrapper!r}"] if self.wrapper else []
        said += self.unwrapping
        said += [f"left out: {some(self.left_out)}"] if self.left_out else []
        said += [f"{count} tensors of {dtype} were converted" for dtype, count in self.cast.items()]
        return said


def convert(file: Path, recipe: Recipe, out: Path, which: Which | None = None, take: Take = "ema") -> dict[str, Any]:
    """Write student.safetensors and recipe.json into `out`; the report. Raises WeightsError, Misfit.

    which: `file` is a checkpoint of our own trainer, and these weights of it are wanted. take: of a file that holds
    both averaged and raw weights.
    """
    found = ImportedWeights(weights_file.check(file), file.stat().st_size)
    loaded: Any = _read_safetensors(file) if found.format == "safetensors" else _load_pth(file)
    if which is not None:
        whole = loaded
        loaded, recipe = _of_checkpoint(whole, which, recipe)
        found.step = whole["state"]["best_step" if which == "best" else "step"]
    elif isinstance(loaded, Mapping) and loaded.get("format") == checkpoint.FORMAT:
        loaded = {part: loaded[part] for part in ("average", "model") if part in loaded}  # "best" would fit as well
    detector = build(recipe)
    wanted = detector.module.state_dict()
    tensors = _unwrap(loaded, wanted, take, found)
    _refuse_odd(tensors, wanted)
    difference = weights.compare(wanted, tensors)
    if difference:
        raise _misfit(difference, recipe, found, _hints(difference, recipe, named_tensors(loaded), take))
    for key, value in tensors.items():
        if value.dtype != wanted[key].dtype:
            name = str(value.dtype).removeprefix("torch.")
            found.cast[name] = found.cast.get(name, 0) + 1
    weights.load_strictly(detector, {key: value.to(wanted[key].dtype) for key, value in tensors.items()})
    ours = {key: value.detach().contiguous() for key, value in detector.module.state_dict().items()}
    weights.write_tensors(out / WEIGHTS, ours)
    (out / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n")
    found.tensors = len(ours)
    found.parameters = sum(parameter.numel() for parameter in detector.module.parameters())
    found.weights_digest = checkpoint.digest_of_tensors(ours)
    return asdict(found) | {"notes": found.notes, "left_out": _named(found.left_out)}


# --- reading --------------------------------------------------------------------------------------------------


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise WeightsError(f"not readable as safetensors: {error}") from error


def _load_pth(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise WeightsError(_told(error)) from error


def _told(error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return (
            f"the file contains more than tensors: it names {named[1]}, which could run code, so nothing was loaded. "
            "Save model.state_dict() alone with torch.save, or use safetensors"
        )
    first = str(error).strip().partition("\n")[0][:300]
    return f"torch cannot read the file as a state dict ({type(error).__name__}: {first}); it may be truncated"


def _unwrap(loaded: Any, wanted: Mapping[str, Tensor], take: Take, found: ImportedWeights) -> dict[str, Tensor]:
    """The tensors by the network's keys, and those that it lacks by their own. Raises WeightsError."""
    state = unwrapped(loaded, wanted, take)
    found.wrapper, found.prefix, found.take = state.wrapper, state.prefix, state.take
    found.left_out = state.left_out[:MAX_KEYS]
    found.unwrapping += state.notes
    return state.tensors


def _of_checkpoint(loaded: Any, which: Which, recipe: Recipe) -> tuple[dict[str, Tensor], Recipe]:
    """The student's tensors in a checkpoint of our trainer, and the recipe that it was saved with."""
    if not isinstance(loaded, Mapping) or loaded.get("format") != checkpoint.FORMAT:
        raise WeightsError(f"not a checkpoint of this version, {checkpoint.FORMAT}")
    if "recipe" in loaded:
        recipe = stored_recipe(loaded["recipe"])
    if which == "best":
        if loaded.get("best") is None:
            raise WeightsError("the checkpoint has no best weights: no evaluation came before it")
        return dict(loaded["best"]), recipe
    if "average" in loaded:  # what the job evaluates and will export
        return {key.removeprefix(AVERAGED): value for key, value in loaded["average"].items()}, recipe
    model = loaded["model"]
    return {key.removeprefix(STUDENT): value for key, value in model.items() if key.startswith(STUDENT)}, recipe


# --- checking -------------------------------------------------------------------------------------------------


def _refuse_odd(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise WeightsError(f"{key} is not a plain tensor: {value.dtype}, {value.layout}, on {value.device}")
        ours = wanted.get(key)
        if ours is not None and ours.is_floating_point() != value.is_floating_point():
            raise WeightsError(f"{key} is {value.dtype}, not {ours.dtype}")


def _misfit(difference: Difference, recipe: Recipe, found: ImportedWeights, advice: tuple[list[str], str]) -> Misfit:
    hints, pointer = advice
    named = 1 if pointer == "/detector" and hints else 8  # of another network every key differs
    sentence = f"The file does not fit {weights.described(recipe)}: {difference.sentence(named)}"
    report = {
        "format": found.format,
        "file_bytes": found.file_bytes,
        "counts": {name: len(getattr(difference, name)) for name in ("missing", "unexpected", "shapes", "not_finite")},
        "missing": _named(difference.missing),
        "unexpected": _named(difference.unexpected),
        "shapes": {
            cut(key): {"file": theirs, "network": ours}
            for key, (theirs, ours) in list(difference.shapes.items())[:MAX_KEYS]
        },
        "not_finite": _named(difference.not_finite),
        "notes": found.notes,
        "hints": hints,
        "pointer": pointer,
    }
    return Misfit(". ".join([*hints, sentence]), report)


def _named(keys: Sequence[str]) -> list[str]:
    return [cut(key) for key in keys[:MAX_KEYS]]


def _hints(difference: Difference, recipe: Recipe, items: Sequence[NamedTensor], take: Take) -> tuple[list[str], str]:
    """What the user most likely has to change, and where: a pointer into the body that named the network."""
    if not (difference.missing or difference.unexpected or difference.shapes):
        return [], "/detector"  # the numbers are at fault
    like = recognise.likeness(items, recipe, take)
    if like is None:
        return [words] if (words := recognise.elsewhere(items)) else [], "/detector"
    if others := like.other_fields(recipe):
        return [f"{like.sentence()}; you named {', '.join(others.values())}"], _pointer(others)
    if (anchors := _anchors_of_head(difference, recipe)) is not None:
        theirs, ours = anchors
        words = f"The file's head has {theirs} anchors at each place, but anchor_sizes and anchor_ratios give {ours}"
        return [words, like.sentence()], "/anchor_sizes"
    classes = len(like.recipe.classes)
    if classes != len(recipe.classes):
        words = f"The file's head has {classes} classes + background, but you named {len(recipe.classes)}"
        return [words, like.sentence()], "/classes"
    return [like.sentence()], "/detector"


def _pointer(others: Mapping[str, str]) -> str:
    (first, *more) = others
    return "/detector" if more or first == "kind" else f"/detector/{first}"


def _anchors_of_head(difference: Difference, recipe: Recipe) -> tuple[int, int] | None:
    """Anchors at each place in the file and in the network, where they differ: four numbers of a box for each."""
    anchors = family_of(recipe.detector).anchors
    theirs, ours = difference.shapes.get(anchors.boxes, ((), ())) if anchors else ((), ())
    return (theirs[0] // 4, ours[0] // 4) if theirs and theirs[0] != ours[0] else None
