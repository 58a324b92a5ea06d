"""Which classes of two networks or data sets are the same, by their names. Knows no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BACKGROUND = "__background__"
"""How torchvision's lists of classes begin: the name of label 0, which a recipe does not name."""
PLACEHOLDERS = frozenset(
    {"n/a", "na", "none", "null", "unused", "undefined", "unlabeled", "reserved", "placeholder", "void", "-", "--", "?"}
)
"""Of labels that no object has, in lower case."""


def is_placeholder(name: str) -> bool:
    return name.strip().lower() in PLACEHOLDERS


def shared_labels(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Our label -> theirs, counted from 1, of each class that both know.

    Equal names first; then names that differ in case, blanks, "_" and "-" alone, where only one class on each side is
    called so.
    """
    exact = {name: label for label, name in reversed(list(enumerate(theirs, start=1)))}
    ours_loose, theirs_loose = Counter(map(_loose, ours)), Counter(map(_loose, theirs))
    loose = {_loose(name): label for label, name in enumerate(theirs, start=1) if theirs_loose[_loose(name)] == 1}
    found = {}
    for label, name in enumerate(ours, start=1):
        if is_placeholder(name):
            continue
        if name in exact:
            found[label] = exact[name]
        elif ours_loose[_loose(name)] == 1 and _loose(name) in loose:
            found[label] = loose[_loose(name)]
    return found


@dataclass(frozen=True)
class ClassMatch:
    """Of the classes of a data set and of a network, by name."""

    labels: Mapping[int, int]
    """The data set's label -> the network's, of each class that both know."""
    shared: tuple[str, ...]
    """Those, as the data set calls them."""
    renamed: Mapping[str, str]
    """Of these the ones that the network spells in another way: the data set's name -> the network's."""
    only_dataset: tuple[str, ...]
    only_network: tuple[str, ...]


def match_classes(dataset: Sequence[str], network: Sequence[str]) -> ClassMatch:
    labels = shared_labels(dataset, network)
    pairs = {dataset[ours - 1]: network[theirs - 1] for ours, theirs in labels.items()}
    known = set(labels.values())
    others = [name for label, name in enumerate(network, start=1) if label not in known and not is_placeholder(name)]
    return ClassMatch(
        labels=labels,
        shared=tuple(pairs),
        renamed={name: theirs for name, theirs in pairs.items() if name != theirs},
        only_dataset=tuple(name for label, name in enumerate(dataset, start=1) if label not in labels),
        only_network=tuple(others),
    )


def _loose(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()
