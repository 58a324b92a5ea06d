"""Images that nobody has labelled: a split of its own, for methods that need no labels. Knows no format and no torch.

They lie in a folder that is called unlabelled (or unlabeled, or unlabeled2017), or a list, table or key of this name
names them. An image that a labelled split names belongs to that one. What seems to label them is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from fgd.data.listing import ListedImage, Listing
from fgd.data.report import Defects
from fgd.data.tree import Tree, folder_of


def gathered(tree: Tree, listing: Listing, defects: Defects) -> Listing:
    """The listing with the unlabelled images last, those of folders that nothing names too, and without labels."""
    report_ignored(tree.set_aside, "files of annotations", defects)
    labelled = [image for image in listing.images if image.split != "unlabelled"]
    unlabelled = [image for image in listing.images if image.split == "unlabelled"]
    if not (unlabelled or tree.unlabelled):
        return listing
    marked = [image.file for image in unlabelled if image.marks or image.unread]
    report_ignored(marked, "images", defects)
    named = {image.file for image in listing.images} | listing.mentioned
    found = [bare(image) for image in unlabelled] + _of_folders(tree, sorted(tree.unlabelled.difference(named)))
    splits = dict(listing.splits)
    if found:
        splits.setdefault("unlabelled", folder_of(found[0].file))
    return replace(listing, images=labelled + found, splits=splits)


def bare(image: ListedImage) -> ListedImage:
    """Nothing but the picture: what is said of its size is said for its boxes."""
    return replace(image, marks=[], unread=[], declared=(None, None))


def _of_folders(tree: Tree, files: Sequence[str]) -> list[ListedImage]:
    paths = {file: tree.path(file) for file in files}
    return [
        ListedImage("unlabelled", PurePosixPath(file).name, file, path)
        for file, path in paths.items()
        if path is not None and path.is_file()
    ]


def report_ignored(files: Sequence[str], what: str, defects: Defects, count: int | None = None) -> None:
    """what: of the unlabelled images, that has or is annotations; files: such as these."""
    if files:
        count = len(files) if count is None else count
        message = f"{count} {what} of the unlabelled split, such as this: the labels there are not read"
        defects.add("labels_ignored", files[0], message, "kept", count)
