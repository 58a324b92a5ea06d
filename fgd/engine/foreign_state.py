"""The state dict of a network in a file from elsewhere: found at any depth, unwrapped key by key.

Training scripts put it under `model`, `state_dict`, `ema.module`, ...; DistributedDataParallel, torch.compile and
Lightning put words before or into its keys, and tensors of their own beside them. What counts is what a key ends with:
tensors whose keys end as a network's do, after the same words, are that network. Executes nothing; trusts no depth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fgd.errors import WeightsError

Take = Literal["ema", "raw"]
"""Of a file that holds both: the averaged weights, or those of the last step."""

USUAL = ("state_dict", "model_state_dict", "model", "model_state", "net", "weights")
"""Under these words a network is looked for first, where several fit."""
AVERAGES = {"ema", "swa", "average", "averaged", "avg", "shadow"}
"""A container or prefix with one of these words in its name holds averaged weights."""
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of a key that say how a network was run, not what it is."""
COUNTERS = {"n_averaged", "num_updates", "updates", "decay", "initted", "step"}
"""Tensors that an average keeps beside the weights."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MAX_DEPTH, MAX_KEY = 8, 1000

Words = tuple[str, ...]


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of the file."""

    path: Words
    """The containers that it lies in, from the outermost."""
    key: str
    tensor: Tensor

    @property
    def whole(self) -> str:
        return ".".join((*self.path, self.key))

    @cached_property
    def words(self) -> Words:
        """All that stands before and in its key, without wrappers."""
        return tuple(word for word in (*self.path, *self.key.split(".")) if word not in WRAPPERS)


@dataclass
class State:
    """One network of the file, as far as it has the keys of the network that is wanted."""

    before: Words
    """What stands before its keys, wrappers left out."""
    tensors: dict[str, NamedTensor] = field(default_factory=dict)
    """By the wanted network's keys."""
    places: set[tuple[Words, str]] = field(default_factory=set)
    """The containers in which they lie, and what their keys begin with there."""

    @property
    def averaged(self) -> bool:
        return any(AVERAGES & set(re.split(r"[\W_]+", word.lower())) for word in self.before)

    @property
    def name(self) -> str:
        return ".".join(self.before)[:100] or "the top"

    def own_key(self, item: NamedTensor) -> str | None:
        """A key of the file without what stands before this network's; None: it is none of this network's."""
        words = item.words
        return ".".join(words[len(self.before) :]) if words[: len(self.before)] == self.before else None

    def surplus(self, item: NamedTensor) -> str | None:
        """The key of a tensor that lies among the network's, without being one that is wanted."""
        among = any(item.path == path and item.key.startswith(front) for path, front in self.places)
        key = self.own_key(item) if among else None
        return key if key not in self.tensors and key not in COUNTERS else None


@dataclass
class Unwrapped:
    """The tensors by the network's keys, those that it does not have by their own; and what was done to get there."""

    tensors: dict[str, Tensor]
    wrapper: str | None
    """The containers in which they lay."""
    prefix: str | None
    """What most of the keys began with."""
    take: Take | None
    """What was taken, where the file has averaged weights."""
    left_out: list[str]
    notes: list[str]


def named_tensors(loaded: Any) -> list[NamedTensor]:
    """Every tensor with a name, wherever it lies. Raises WeightsError if there is none."""
    found = list(_walk(loaded, (), set()))
    if found:
        return found
    if isinstance(loaded, Mapping):
        odd = next((_word(key)[:100] for key in loaded), None)
        what = f"a dict in which {odd!r} is not a tensor, nor a dict of tensors" if odd is not None else "an empty dict"
    else:
        what = f"a {type(loaded).__name__}"
    raise WeightsError(f"the file contains {what}; expected a state dict: names with tensors")


def _walk(value: Any, path: Words, seen: set[int]) -> Iterator[NamedTensor]:
    """Each dict once: a pickle may hold itself, or one dict a thousand times."""
    if not isinstance(value, Mapping) or len(path) > MAX_DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    for key, inner in value.items():
        if isinstance(inner, Tensor):
            yield NamedTensor(path, _word(key), inner)
        else:
            yield from _walk(inner, (*path, _word(key)), seen)


def _word(key: Any) -> str:
    if isinstance(key, str):
        return key
    return str(key) if isinstance(key, int) and abs(key) < 2**63 else type(key).__name__


def unwrapped(loaded: Any, wanted: Mapping[str, Any], take: Take) -> Unwrapped:
    """The network with (most of) the wanted keys. Raises WeightsError where there is none, or several fit and none is
    the usual one."""
    return unwrapped_tensors(named_tensors(loaded), wanted, take, list(map(_word, loaded)))


def unwrapped_tensors(
    items: Sequence[NamedTensor], wanted: Mapping[str, Any], take: Take, entries: Sequence[str] = ()
) -> Unwrapped:
    """entries: at the top of the file, to be listed where they hold nothing that is used."""
    states = _states(items, wanted)
    state = _chosen(states, take, wanted)
    other = next((each for each in states if each.averaged != state.averaged), None)
    notes = [_about_choice(state, other)] if state.averaged or other is not None else []
    borrowed = _statistics_of(other, state, wanted) if other is not None and state.averaged else {}
    if borrowed and other is not None:
        notes.append(f"{len(borrowed)} running statistics are those under {other.name!r}: the average has none")
    surplus = {key: each for each in items if (key := state.surplus(each)) is not None}
    used = {**state.tensors, **borrowed, **surplus}
    prefix, changes = _prefix(state)
    wrapper = Counter(".".join(each.path) for each in state.tensors.values()).most_common(1)
    return Unwrapped(
        tensors={key: each.tensor for key, each in used.items()},
        wrapper=(wrapper[0][0] or None) if wrapper else None,
        prefix=prefix,
        take=("ema" if state.averaged else "raw") if notes else None,
        left_out=_left_out(items, used.values(), entries),
        notes=[*notes, *changes],
    )


def _statistics_of(other: State, state: State, wanted: Mapping[str, Any]) -> dict[str, NamedTensor]:
    """What an average of parameters alone lacks: statistics, which the raw weights beside it have."""
    lacking = wanted.keys() - state.tensors.keys()
    if not lacking <= other.tensors.keys() or not all(key.endswith(STATISTICS) for key in lacking):
        return {}
    return {key: other.tensors[key] for key in lacking}


def _left_out(items: Sequence[NamedTensor], used: Collection[NamedTensor], entries: Sequence[str]) -> list[str]:
    """Tensors by name where they lie beside used ones; else the entry of the file that holds them."""
    containers = {each.path[0] for each in used if each.path}
    kept = {id(each) for each in used}
    unused = [each for each in items if id(each) not in kept]
    named = {each.whole if not each.path or each.path[0] in containers else each.path[0] for each in unused}
    tops = {each.key for each in items if not each.path}
    return sorted(name[:200] for name in named | (set(entries) - containers - tops))


# --- which tensors belong together ----------------------------------------------------------------------------


def _states(items: Sequence[NamedTensor], wanted: Mapping[str, Any]) -> list[State]:
    """The networks of the file that have a fair share of the wanted keys; if none has, the largest dict there is."""
    longest = max((key.count(".") + 1 for key in wanted), default=0)
    found: dict[Words, State] = {}
    for item in items:
        if len(item.key) > MAX_KEY:
            continue
        words = item.words
        for start in range(max(0, len(words) - longest), len(words)):
            if (key := ".".join(words[start:])) in wanted:
                state = found.setdefault(words[:start], State(words[:start]))
                _add(state, key, item)
                break
    most = max((len(state.tensors) for state in found.values()), default=0)
    if states := [state for state in found.values() if 2 * len(state.tensors) > most]:
        return states
    path = Counter(item.path for item in items).most_common(1)[0][0]
    return [State(tuple(word for word in path if word not in WRAPPERS), places={(path, "")})]


def _add(state: State, key: str, item: NamedTensor) -> None:
    state.places.add((item.path, _front(item.key, key)))
    there = state.tensors.setdefault(key, item)
    if there is not item and not _equal(there.tensor, item.tensor):
        raise WeightsError(f"the file has two tensors for {key}: {there.whole[:200]} and {item.whole[:200]}")


def _chosen(states: list[State], take: Take, wanted: Mapping[str, Any]) -> State:
    """Of the kind that is asked for, if there is one; of several the one under the usual word."""
    of_kind = [state for state in states if state.averaged == (take == "ema")] or states
    whole = [state for state in of_kind if len(state.tensors) == len(wanted)] or of_kind
    usual = [state for state in whole if not state.before or state.before[-1] in USUAL] or whole
    first = usual[0]
    for other in usual[1:]:
        if not _same(first, other):
            named = ", ".join(sorted(repr(state.name) for state in usual))
            raise WeightsError(f"several networks of the file fit, under {named}; keep the one that you mean")
    return first


def _about_choice(state: State, other: State | None) -> str:
    kind = "averaged (EMA) weights" if state.averaged else "raw weights"
    if other is None:
        return f"the file contains only {kind}, under {state.name!r}"
    instead = "raw" if state.averaged else "ema"
    return f'the {kind} under {state.name!r} were taken; "take": "{instead}" takes those under {other.name!r}'


def _same(one: State, other: State) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        _equal(one.tensors[key].tensor, other.tensors[key].tensor) for key in one.tensors
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """False for what claims more numbers than the file has."""
    plain = all(each.layout == torch.strided and each.is_contiguous() for each in (one, other))
    return plain and one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))


def _front(theirs: str, ours: str) -> str:
    """What stands before our key in theirs, which may have wrappers within it."""
    return theirs.removesuffix(ours) if theirs.endswith(ours) else theirs[: theirs.find(f"{ours.partition('.')[0]}.")]


def _prefix(state: State) -> tuple[str | None, list[str]]:
    """What was taken off the front of keys, and a note for each way in which keys were changed."""
    fronts = Counter(_front(item.key, key) for key, item in state.tensors.items())
    inside = sum(not item.key.endswith(key) for key, item in state.tensors.items())
    notes = []
    for front, count in fronts.most_common():
        if front:
            keys = "every key" if count == len(state.tensors) else f"{count} of {len(state.tensors)} keys"
            notes.append(f"the prefix {front[:100]!r} was removed from {keys}")
    if inside:
        notes.append(f"wrappers such as '_orig_mod.' were removed within {inside} of {len(state.tensors)} keys")
    prefix = fronts.most_common(1)[0][0] if fronts else ""
    return prefix or None, notes
