"""Reports the names that have no file together with the files that have no name. Knows no format and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher

from fgd.data.listing import Missing
from fgd.data.matching import Match, Several
from fgd.data.report import Defects
from fgd.data.tree import short

_NAMES, _FILES = 20, 100
"""Compared to find the closest pair; more would cost their product."""
_COMPARED = 60
"""Characters of each."""


def report_unmatched(missing: Sequence[Missing], unlisted: Sequence[str], defects: Defects) -> None:
    """What is listed and not found, and what is found and not listed: side by side, then one by one."""
    if missing and unlisted:
        what = (
            f"{len(missing)} {_files(len(missing))} listed and not found, {len(unlisted)} {_files(len(unlisted))} "
            f"found and not listed"
        )
        report_closest(what, [entry.name for entry in missing], unlisted, defects)
    for entry in missing:
        defects.add("image_missing", entry.file[:255], entry.message, "dropped_image")


def report_closest(what: str, names: Sequence[str], files: Sequence[str], defects: Defects) -> None:
    """Both sides in one sentence, and the names that are most alike."""
    name, file = _closest(names, files)
    defects.add("names_differ", "", f"{what}; the closest pair is {short(name)} and {short(file)}", "kept")


def report_spellings(where: str, found: Mapping[str, Match | Several | None], defects: Defects) -> None:
    """Names that were found by the end of their path or in another spelling: counted, and shown by one of them."""
    other = {name: match.file for name, match in found.items() if isinstance(match, Match) and not match.exact}
    if other:
        name, file = next(iter(other.items()))
        message = (
            f"{len(other)} of {len(found)} file names differ from those of the files; each was found by the "
            f"end of its path or by another spelling, such as {short(name)} as {short(file)}"
        )
        defects.add("names_matched", where, message, "kept")


def hint(found: Several | None) -> str:
    """The end of a sentence that says that a file is missing."""
    if found is None:
        return ""
    if len(found.files) == 1:
        return f"; several images have this name, {short(found.files[0])} is one of them: write its folder too"
    if not found.files:
        return "; many files have this name: write its folder too"
    return f"; it could be {' or '.join(map(short, found.files[:3]))}: write its folder too"


def _files(count: int) -> str:
    return "file is" if count == 1 else "files are"


def _closest(names: Sequence[str], files: Sequence[str]) -> tuple[str, str]:
    pairs = ((name, file) for name in _some(names, _NAMES) for file in _some(files, _FILES))
    return max(pairs, key=lambda pair: _likeness(*pair))


def _some(names: Sequence[str], most: int) -> Iterable[str]:
    return names[:: max(1, -(-len(names) // most))]


def _likeness(name: str, file: str) -> float:
    first, second = (path.replace("\\", "/").rpartition("/")[2].casefold()[-_COMPARED:] for path in (name, file))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
