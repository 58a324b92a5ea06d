"""Compares what a format's reader listed with the image files, repairs, and says what it did. Knows no torch.

Boxes are in pixels of the stored image. One that reaches out of the image by at most `TOLERANCE_PX` is cut without a
word (rounding of the labelling tools); by more, it is cut and reported. One thinner than `MIN_SIDE_PX` after that has
no area: float32 arithmetic at a thousand pixels could make it empty, which detectors refuse.
fgd.data.frames finds the picture that the boxes were drawn in, fgd.data.conventions how their numbers are to be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fgd.data import frames
from fgd.data.conventions import (
    Convention,
    Unit,
    WrittenBox,
    are_fractions,
    check_splits,
    numbers,
    redrawn,
)
from fgd.data.foreign import pictures
from fgd.data.frames import Frame, turned_back
from fgd.data.images import BadImage, Probe, probe
from fgd.data.index import Box, CarvedSplit, Image, Index, Report
from fgd.data.listing import ListedImage, Listing, Mark, NoBox
from fgd.data.report import Defects
from fgd.data.splits import Carving, carve
from fgd.data.tree import MAX_NAME, SPLITS, Split, Tree, common_folder, folder_of, short
from fgd.data.unlabelled import gathered
from fgd.data.unmatched import report_unmatched
from fgd.text.printable import printable

Verify = Literal["full", "headers"]
Sources = dict[str, Path]
"""`Image.file` -> the file it comes from."""

TOLERANCE_PX = 0.5
MIN_SIDE_PX = 0.1
_DECODERS = 4
"""Threads; Pillow decodes without the interpreter's lock."""

_UNREADABLE = frozenset({"box_invalid", "box_not_finite", "box_not_relative", "box_relative"})
"""Of a box that is there and nobody knows where: an image that has no other is no background."""
_FAR = 0.5
"""A fraction so far outside 0..1 is no fraction, but a number of pixels."""


@dataclass(frozen=True)
class _BoxedImage:
    box: Box
    name: str
    """Of the class."""
    crowd: bool


@dataclass(frozen=True)
class _ReadableImage:
    listed: ListedImage
    probe: Probe


@dataclass
class _CheckedImage:
    """One usable image and its boxes."""

    listed: ListedImage
    probe: Probe
    split: Split
    frame: Frame
    boxes: list[_BoxedImage] = field(default_factory=list)


def check(
    tree: Tree, listing: Listing, defects: Defects, verify: Verify = "full", carving: Carving | None = None
) -> tuple[Index, Report, Sources]:
    """The index, what was wrong, and where each image comes from.

    Image ids are new, 1..N through train, val, test, unlabelled in the listing's order. Where the report is not ok the
    index holds what could be read and must not be trained on. verify: "full" decodes every image, "headers" only reads
    sizes.
    """
    for link in tree.links:
        defects.add(
            "link_not_followed", link, "a link to a folder is not followed; put the folder itself there", "kept"
        )
    for name, why in tree.left_out:
        defects.add("name_not_used", name, why, "kept")
    listing = gathered(tree, listing, defects)
    _report_unlisted(tree, listing, defects)
    listing = _with_printable_names(listing, defects)
    images = _with_boxes(_probe_all(listing.images, verify, defects), listing, defects)
    carved = _carve(images, listing, carving or Carving(), defects)
    _report_repeats(images, defects)
    index = _index(images, _classes(images, listing.classes, defects), defects)
    _report_absences(index, defects)
    _require(index, listing, carved is not None, pictures(tree), defects)
    report = defects.report(listing.format, index, carved, _places(images))
    return index, report, {i.probe.stored_name: i.listed.path for i in images}


def _with_printable_names(listing: Listing, defects: Defects) -> Listing:
    """Class names are shown on terminals and pages: in them control characters, and what turns text around, are
    written out."""
    names = {mark.name for image in listing.images for mark in image.marks} | set(listing.classes)
    changed = {name: printable(name)[:MAX_NAME] for name in names if printable(name) != name}
    if not changed:
        return listing
    for name in sorted(changed):
        message = f"class {short(name)} has control characters in its name; they are written out"
        defects.add("class_name_escaped", "", message, "kept")
    images = [
        replace(image, marks=[replace(mark, name=changed.get(mark.name, mark.name)) for mark in image.marks])
        for image in listing.images
    ]
    classes = tuple(dict.fromkeys(changed.get(name, name) for name in listing.classes))
    return replace(listing, images=images, classes=classes)


# --- images ---------------------------------------------------------------------------------------------------


def _report_unlisted(tree: Tree, listing: Listing, defects: Defects) -> None:
    """Names without a file and image files without a name; where some annotations could not be read, no file is."""
    named = {image.file for image in listing.images} | listing.mentioned
    unlisted = [file for file in tree.images() if file not in named] if not listing.told else []
    report_unmatched(listing.missing, unlisted, defects)
    for file in unlisted:
        defects.add("image_unlisted", file, "no annotation names it; left out", "dropped_image")


def _probe_all(listed: list[ListedImage], verify: Verify, defects: Defects) -> list[_CheckedImage]:
    """The images that can be read and whose boxes can be placed."""
    readable: list[_ReadableImage] = []
    with ThreadPoolExecutor(_DECODERS) as pool:
        paths = list(dict.fromkeys(image.path for image in listed))  # rows of a Parquet file can share one
        results = dict(zip(paths, pool.map(lambda path: _try_probe(path, verify), paths), strict=True))
        for image in listed:
            result = results[image.path]
            if isinstance(result, BadImage):
                defects.add(result.code, image.file, result.message, "dropped_image")
            else:
                readable.append(_ReadableImage(image, result))
    found = frames.find(readable, defects)
    usable = [
        _CheckedImage(image.listed, image.probe, image.listed.split, frame)
        for image, frame in zip(readable, found, strict=True)
        if frame
    ]
    for one in usable:
        if one.probe.mode != "RGB":
            message = f"{one.probe.mode} is converted to RGB when read"
            defects.add("colour_converted", one.listed.file, message, "kept")
    return usable


def _try_probe(path: Path, verify: Verify) -> Probe | BadImage:
    try:
        return probe(path, verify)
    except BadImage as error:
        return error


def _report_repeats(images: list[_CheckedImage], defects: Defects) -> None:
    """The same bytes twice: between splits they flatter the result, inside one they count double."""
    first: dict[str, _CheckedImage] = {}
    for image in images:
        other = first.setdefault(image.probe.sha256, image)
        if other is image:
            continue
        if other.split == image.split:
            message = f"same content as {other.listed.file} in {image.split}; it counts twice"
            defects.add("image_repeated", image.listed.file, message, "kept")
            continue
        both = f"in {image.split}, same content as {other.listed.file} in {other.split}"
        if (other.split, image.split) == ("train", "unlabelled"):
            defects.add("image_repeated", image.listed.file, f"{both}, with its labels; it counts twice", "kept")
        else:
            where = "there" if image.split != "unlabelled" else f"in {other.split}"
            message = f"{both}; results {where} look better than they are"
            defects.add("image_in_two_splits", image.listed.file, message, "kept")


# --- boxes ----------------------------------------------------------------------------------------------------


def _with_boxes(images: list[_CheckedImage], listing: Listing, defects: Defects) -> list[_CheckedImage]:
    """The images with their boxes; without those whose labels are there and cannot be read."""
    own = Convention(listing.layout, _unit(images), listing.first_pixel)
    ways = check_splits(list(_written(images)), own, defects)
    return [image for image in images if _add_boxes(image, own, ways[image.split], defects)]


def _unit(images: list[_CheckedImage]) -> Unit:
    """Of a format all boxes are fractions, or none."""
    relative = any(mark.relative for image in images for mark in image.listed.marks)
    return "fractions" if relative else "pixels"


def _written(images: list[_CheckedImage]) -> Iterator[WrittenBox]:
    for image in images:
        for mark in image.listed.marks:
            if not isinstance(mark.box, NoBox):
                yield WrittenBox(mark.box, image.frame.size, image.listed.file, image.split)


def _add_boxes(image: _CheckedImage, own: Convention, way: Convention, defects: Defects) -> bool:
    """Give an image its boxes, in the order of the annotations. False if it has some, and none can be read."""
    seen: dict[tuple[Box, str], str] = {}
    unread = list(image.listed.unread)
    for mark in image.listed.marks:
        found = _checked_box(mark, image, own, way, defects)
        if isinstance(found, NoBox):
            message = f"{mark.where} has box {short(mark.written)}, {found.reason}"
            defects.add(found.code, image.listed.file, message, "dropped_box", box=found.box)
            unread += [message] if found.code in _UNREADABLE else []
            continue
        if (other := seen.get((found, mark.name))) is not None:
            message = f"{mark.where} has box {short(mark.written)} of class {short(mark.name)}, as {other} has"
            defects.add("box_duplicate", image.listed.file, message, "dropped_box", box=found)
            continue
        seen[found, mark.name] = mark.where
        image.boxes.append(_BoxedImage(found, mark.name, mark.crowd))
    if unread and not image.boxes:
        message = f"none of its {len(unread)} labels can be read ({unread[0]}); left out, as it is not background"
        defects.add("labels_unreadable", image.listed.file, message, "dropped_image")
        return False
    if not image.listed.marks and image.split != "unlabelled":
        defects.add("image_unlabelled", image.listed.file, "no box; kept as background", "kept")
    return True


def _checked_box(mark: Mark, image: _CheckedImage, own: Convention, way: Convention, defects: Defects) -> Box | NoBox:
    """xyxy inside the image."""
    width, height = image.probe.width, image.probe.height
    found = _placed(mark, image, own, way)
    if isinstance(found, NoBox):
        return found
    clipped = clip(found, width, height)
    if isinstance(clipped, NoBox):
        return replace(clipped, box=found)
    if clipped.overhang > TOLERANCE_PX:
        message = f"{mark.where} has box {short(mark.written)}, which extends beyond its image of {width}x{height}"
        defects.add("box_clipped", image.listed.file, message, "clipped_box", box=found)
    return clipped.box


def _placed(mark: Mark, image: _CheckedImage, own: Convention, way: Convention) -> Box | NoBox:
    """xyxy in stored pixels."""
    box, width, height = mark.box, image.probe.width, image.probe.height
    if isinstance(box, NoBox):
        return box
    written = box if mark.outline else numbers(box, own)
    if mark.relative:
        if not all(-_FAR <= value <= 1 + _FAR for value in written):
            return NoBox(
                "box_not_relative", "whose numbers must be fractions of the image's width and height, from 0 to 1"
            )
        x1, y1, x2, y2 = turned_back(box, image.frame)
        return (x1 * width, y1 * height, x2 * width, y2 * height)
    if are_fractions(written):
        return NoBox("box_relative", "whose numbers are fractions of the image, not pixels")
    return image.frame.stored(box if way == own or mark.outline else redrawn(box, own, way), (width, height))


@dataclass(frozen=True)
class ClippedBox:
    box: Box
    overhang: float
    """How far the box reached out of its image, pixels; 0 or less if it did not."""


def clip(box: Box, width: int, height: int) -> ClippedBox | NoBox:
    """What is left of xyxy inside the image."""
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return NoBox("zero_area_box", "which has no area")
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return NoBox("box_outside", f"which is outside its image of {width}x{height}")
    x1, y1, x2, y2 = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if x2 - x1 < MIN_SIDE_PX or y2 - y1 < MIN_SIDE_PX:
        return NoBox("zero_area_box", f"which is thinner than {MIN_SIDE_PX} px inside its image of {width}x{height}")
    return ClippedBox((x1, y1, x2, y2), max(-left, -top, right - width, bottom - height))


# --- the split ------------------------------------------------------------------------------------------------


def _carve(images: list[_CheckedImage], listing: Listing, carving: Carving, defects: Defects) -> CarvedSplit | None:
    """Take val out of train where the user has none. None if nothing had to be, or could be, taken."""
    if "val" in listing.splits or "val" in listing.told or "train" not in listing.splits:
        if carving.asked:
            defects.add("option_unused", "", "val_fraction and group_by have no effect: there is a val split", "kept")
        return None
    train = [image for image in images if image.split == "train"]
    labelled = [image.file for image in listing.images if image.split != "unlabelled"]
    home = common_folder({folder_of(file) for file in (*listing.read_from, *labelled)})
    chosen = carve(
        [image.listed.file[len(home) :].lstrip("/") for image in train],
        [image.probe.sha256 for image in train],
        [{boxed.name for boxed in image.boxes if not boxed.crowd} for image in train],
        carving,
    )
    if chosen is None:
        if train:
            message = (
                f"there is no val split, and none can be taken from the {len(train)} usable images of train with "
                f"group_by {carving.group_by!r} so that both have boxes; add images, or a val split"
            )
            defects.reject("val_not_carved", listing.splits["train"], message)
        return None
    for place in chosen.places:
        train[place].split = "val"
    images.sort(key=lambda image: SPLITS.index(image.split))
    message = (
        f"there is no val split: {len(chosen.places)} of the {len(train)} images of train are used for it, chosen by a "
        f"hash of their names (val_fraction {carving.fraction:g}, group_by {carving.group_by})"
    )
    defects.add("val_carved", "", message, "kept")
    return CarvedSplit(
        val_fraction=carving.fraction, group_by=carving.group_by, images=len(chosen.places), groups=chosen.groups
    )


# --- the index ------------------------------------------------------------------------------------------------


def _classes(images: list[_CheckedImage], table: Iterable[str], defects: Defects) -> tuple[str, ...]:
    """Names of the classes that have a box in train, in the user's order."""
    trained = {boxed.name for image in images if image.split == "train" for boxed in image.boxes}
    for name in table if trained else ():  # no box at all in train is one defect, not one for each class
        if name not in trained:
            defects.add("class_unused", "", f"class {short(name)} has no box in train; left out", "kept")
    return tuple(name for name in table if name in trained)


def _index(images: list[_CheckedImage], classes: tuple[str, ...], defects: Defects) -> Index:
    labels = {name: label for label, name in enumerate(classes, start=1)}
    splits: dict[Split, list[Image]] = {}
    for number, image in enumerate(images, start=1):
        known = [boxed for boxed in image.boxes if boxed.name in labels]
        for boxed in image.boxes if classes else ():  # no class at all is one defect, not one for each box
            if boxed.name not in labels:
                message = f"a box of class {short(boxed.name)}, which has none in train"
                defects.add("class_not_in_train", image.listed.file, message, "dropped_box", box=boxed.box)
        splits.setdefault(image.split, []).append(
            Image(
                id=number,
                file=image.probe.stored_name,
                name=image.listed.name,
                width=image.probe.width,
                height=image.probe.height,
                boxes=tuple(boxed.box for boxed in known),
                labels=tuple(labels[boxed.name] for boxed in known),
                crowd=tuple(boxed.crowd for boxed in known),
            )
        )
    return Index(classes=classes, splits={split: tuple(members) for split, members in splits.items()})


def _places(images: list[_CheckedImage]) -> dict[str, tuple[Split, int]]:
    """Where each file stands in the index; of one in two splits the first."""
    found: dict[str, tuple[Split, int]] = {}
    many: Counter[Split] = Counter()
    for image in images:
        found.setdefault(image.listed.file, (image.split, many[image.split]))
        many[image.split] += 1
    return found


def _report_absences(index: Index, defects: Defects) -> None:
    """Classes that are trained and cannot be scored."""
    for split, images in index.splits.items():
        there = Counter(label for image in images for label in image.labels)
        for label, name in enumerate(index.classes, start=1):
            if there and not there[label]:
                message = f"class {short(name)} has no box in {split}; it has no AP there"
                defects.add("class_absent", "", message, "kept")


def _require(index: Index, listing: Listing, carved: bool, unreadable: str | None, defects: Defects) -> None:
    """Reject what cannot be trained or evaluated. unreadable: pictures of a kind that is not read."""
    needed: Sequence[Split] = ("train", "val")
    for split in needed:
        images = index.splits.get(split, ())
        if split == "val" and (carved or (split not in listing.splits and "train" in listing.splits)):
            continue  # made of train; where that was not possible, it has been told, or train's defect tells it
        if split not in listing.splits:
            if split not in listing.told:
                there = ", ".join(f"{other} from {place or 'the root'}" for other, place in listing.splits.items())
                told = f" (found: {there})" if there else ""
                message = listing.advice.split.format(split=split) + told
                defects.reject("split_missing", next(iter(listing.splits.values()), ""), message)
        elif not images:
            why, first = _why_none(listing, split, defects)
            more = f" ({unreadable})" if unreadable else ""
            defects.reject("no_images", listing.splits[split] or first, f"no usable image in {split}; {why}{more}")
        elif split == "val" and not index.classes:
            continue  # its boxes went with train's classes; train's defect says what to do
        elif not any(crowd is False for image in images for crowd in image.crowd):
            message = f"no usable box in {split}; {listing.advice.boxes.format(split=split)}"
            defects.reject("no_boxes", listing.splits[split], message)


def _why_none(listing: Listing, split: Split, defects: Defects) -> tuple[str, str]:
    """The reason that most of the images were left out for, and the first; the format's advice where none was."""
    found = defects.most_dropped()
    if found is None:
        return listing.advice.images.format(split=split), ""
    count, defect = found
    return f"{count} images were left out for {defect.code}, the first {defect.file}: {defect.message}", defect.file
