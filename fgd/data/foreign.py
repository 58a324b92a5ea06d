"""What a folder holds that is no data set we read: other tools' files by name, and the way from them to one.

Called only where nothing was found, so it may look into files; into few, and not far. Knows no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from fgd.data.encodings import decode
from fgd.data.texts import UnreadableText, load_yaml, place, read_text
from fgd.data.tree import Tree, folder_of, is_class_name, short, suffix

_FILES = 20
"""Of one suffix that are looked into."""
_MOST = 4 * 2**20
_HEAD = 1 << 16
_TOLD = 4
_CLASS_LISTS = (
    *("classes.txt", "class_names.txt", "labels.txt", "names.txt"),
    *("obj.names", "_darknet.labels", "predefined_classes.txt"),
)
_EXPORT = "export it as COCO, YOLO or Pascal VOC"
_NOTES = "notes.json"
"""Label Studio's, beside the labels of YOLO."""

_SUFFIXES: Mapping[str, str] = {
    ".tfrecord": f"a TFRecord, which is not read; {_EXPORT}",
    ".record": f"a TFRecord, which is not read; {_EXPORT}",
    ".tfrecords": f"a TFRecord, which is not read; {_EXPORT}",
    ".rec": "a RecordIO of MXNet, which is not read; unpack it and write COCO annotations",
    ".arrow": "a data set saved by save_to_disk; push it to the hub, or write Parquet with to_parquet",
    ".ndjson": f"NDJSON of a labelling service, which is not read; {_EXPORT}",
    ".mat": "a table of MATLAB, which is not read; write COCO annotations from it",
    ".h5": "an HDF5 file, which is not read; write images and COCO annotations from it",
    ".hdf5": "an HDF5 file, which is not read; write images and COCO annotations from it",
    ".npz": "arrays of NumPy, which are not read; write images and COCO annotations from them",
    ".npy": "an array of NumPy, which is not read; write images and COCO annotations from it",
    ".pkl": "a pickle, which is never read, for it can run code; write COCO annotations from it",
    ".pickle": "a pickle, which is never read, for it can run code; write COCO annotations from it",
    ".lmdb": "an LMDB, which is not read; write images and COCO annotations from it",
    ".mdb": "an LMDB, which is not read; write images and COCO annotations from it",
    ".xlsx": "a table of Excel, which is not read; write COCO annotations from it",
}
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
_JPEG = "convert them to JPEG"
PICTURES: Mapping[str, str] = {
    ".heic": "pictures of an iPhone in HEIC, which is not read; convert them to JPEG (heif-convert, sips)",
    ".heif": "pictures in HEIF, which is not read; convert them to JPEG (heif-convert, sips)",
    ".avif": f"pictures in AVIF, which is not read; {_JPEG}",
    ".jxl": f"pictures in JPEG XL, which is not read; {_JPEG}",
    ".jp2": f"pictures in JPEG 2000, which is not read; {_JPEG}",
    ".svg": "drawings in SVG, which have no pixels; draw them as PNG",
    ".pdf": "PDF files, which are not read; convert each page to PNG",
    ".psd": f"pictures of Photoshop, which are not read; {_JPEG}",
    ".dcm": "pictures in DICOM, which is not read; convert them to PNG with 8 bits a channel",
    ".exr": "pictures in OpenEXR, which is not read; convert them to PNG with 8 bits a channel",
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".orf"), f"raw pictures of a camera; {_JPEG}"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv"), "videos, which are not read; write their frames as JPEG"),
}


@dataclass(frozen=True)
class Finding:
    """A file that shows what the folder holds, and the end of a sentence that begins with it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def explained(tree: Tree, message: str) -> str:
    """What was found instead comes first; then the message of what was looked for."""
    findings = list(found(tree))[:_TOLD]
    return "; ".join([*map(str, findings), message])


def found(tree: Tree) -> Iterator[Finding]:
    """The likeliest cause first."""
    plans = list(_yaml(tree))
    yield from plans
    yield from _json(tree)
    yield from _xml(tree)
    labels = [] if plans else list(_labels(tree))
    yield from labels
    for look in (_tables, _other_suffixes, _archives, *(() if labels or plans else (_pictures, _only_pictures))):
        yield from look(tree)


def pictures(tree: Tree) -> str | None:
    """The pictures of a kind that is not read; None if there are none."""
    return next(map(str, _pictures(tree)), None)


# --- by suffix ------------------------------------------------------------------------------------------------


def _of_suffix(tree: Tree, *suffixes: str) -> list[str]:
    """The first files, the shallowest first."""
    files = [file for file in tree.files if suffix(file) in suffixes]
    return sorted(files, key=lambda file: (file.count("/"), file))[:_FILES]


def _other_suffixes(tree: Tree) -> Iterator[Finding]:
    for file in sorted([*tree.files, *tree.skipped]):
        what = _SUFFIXES.get(suffix(file)) or (_SUFFIXES[".tfrecord"] if ".tfrecord-" in file else None)
        if what:
            yield Finding(file, what)
            return


def _archives(tree: Tree) -> Iterator[Finding]:
    inside = [file for file in sorted([*tree.files, *tree.skipped]) if suffix(file) in ARCHIVES]
    if inside:
        more = f" (and {len(inside) - 1} more)" if len(inside) > 1 else ""
        yield Finding(inside[0], f"an archive in the data set, which is not unpacked; send what is in it{more}")


def _pictures(tree: Tree) -> Iterator[Finding]:
    kinds = Counter(suffix(file) for file in (*tree.files, *tree.skipped))
    for kind, what in PICTURES.items():
        if kinds[kind]:
            first = min(file for file in (*tree.files, *tree.skipped) if suffix(file) == kind)
            yield Finding(first, f"{kinds[kind]} {what}")
            return


def _only_pictures(tree: Tree) -> Iterator[Finding]:
    images = tree.images()
    if not images or any(suffix(file) in (".json", ".xml", ".txt", ".yaml", ".csv", ".jsonl") for file in tree.files):
        return
    folders = Counter(map(folder_of, images))
    what = f"one of {len(images)} pictures, and no file says what is on them; add annotations"
    if len(folders) > 1:
        what += "; folders named by class are for whole pictures, and a detector needs boxes"
    yield Finding(images[0], what)


# --- YAML -----------------------------------------------------------------------------------------------------


def _yaml(tree: Tree) -> Iterator[Finding]:
    """What keeps a data.yaml from being one."""
    for file in _of_suffix(tree, ".yaml", ".yml"):
        try:
            text = read_text(tree, file, _MOST)
            content = load_yaml(text)
        except UnreadableText as error:
            hint = "; write \\ as /, or in single quotes" if "escape character" in str(error) else _tabs(tree, file)
            yield Finding(file, f"{error}{hint}, so it is not read as YOLO's data.yaml")
            continue
        if not isinstance(content, dict):
            yield Finding(
                file, f"not a YOLO data.yaml: it contains {_kind_of(content)}, not keys such as names and train"
            )
            continue
        split = any(key in content for key in ("train", "val", "valid", "validation", "test"))
        if "names" in content and not split:
            yield Finding(file, "it names classes and no folder of images; add a line such as train: images/train")
        elif split and "names" not in content:
            yield Finding(file, "it has no names of classes; add a line such as names: [cat, dog]")


def _tabs(tree: Tree, file: str) -> str:
    try:
        tabs = re.search(r"^\s*\t", read_text(tree, file, _MOST), re.MULTILINE)
    except UnreadableText:
        return ""
    return " (lines start with tabs, but YAML is indented with spaces)" if tabs else ""


def _kind_of(content: Any) -> str:
    return {"NoneType": "nothing", "str": "text", "list": "a list"}.get(type(content).__name__, "one value")


# --- JSON -----------------------------------------------------------------------------------------------------


def _json(tree: Tree) -> Iterator[Finding]:
    told: set[str] = set()
    for file in _of_suffix(tree, ".json", ".jsonl"):
        what = json_kind(_first_bytes(tree, file), whole=suffix(file) == ".json")
        if what and what not in told:
            told.add(what)
            yield Finding(file, what)


def _first_bytes(tree: Tree, file: str) -> bytes:
    """Of a larger file its head; it is not parsed then."""
    try:
        with place(tree, file).open("rb") as content:
            return content.read(_MOST + 1)
    except (OSError, UnreadableText):
        return b""


def json_kind(content: bytes, whole: bool = True) -> str | None:
    """What a JSON file is that is no COCO; None if it says nothing."""
    if whole and len(content) <= _MOST:
        try:
            parsed = json.loads(content)
        except UnicodeDecodeError:
            return "its text is neither UTF-8 nor another encoding of JSON, so it cannot be read"
        except json.JSONDecodeError as error:
            return f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        except (ValueError, RecursionError) as error:
            return f"invalid JSON: {error}"
        return json_value_kind(parsed)
    return None


def json_value_kind(value: Any) -> str | None:
    """The same of a value that is read already."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return None
    tests = _LISTS if isinstance(value, list) else _OBJECTS
    return next((what for test, what in tests if test(first)), None)


def _has(*keys: str) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: all(key in entry for key in keys)


def _holds(outer: str, *keys: str) -> Callable[[dict[str, Any]], bool]:
    """The first value below a key, a list or an object, has these keys."""

    def test(entry: dict[str, Any]) -> bool:
        inner = entry.get(outer)
        values = inner if isinstance(inner, list) else list(inner.values()) if isinstance(inner, dict) else []
        return bool(values) and isinstance(values[0], dict) and all(key in values[0] for key in keys)

    return test


def _is_via(entry: dict[str, Any]) -> bool:
    values = [value for value in entry.values() if isinstance(value, dict)]
    return bool(values) and all("regions" in value and "filename" in value for value in values[:3])


_LABELME = f"a file of labelme (shapes of one picture), which is not read; {_EXPORT} (labelme2coco, labelme2yolo)"
_STUDIO = "an export of Label Studio in its own JSON, which is not read; export it as COCO, YOLO or Pascal VOC there"
_LISTS: tuple[tuple[Callable[[dict[str, Any]], bool], str], ...] = (
    (_has("data", "annotations"), _STUDIO),
    (_has("data", "completions"), _STUDIO),
    (_has("image_id", "bbox", "score"), "results of a detector in COCO's form, not annotations of a data set"),
    (_holds("annotations", "coordinates"), f"a file of CreateML, which is not read; {_EXPORT}"),
    (_holds("annotations", "bbox_mode"), "records of Detectron2, which are not read; write COCO annotations from them"),
    (_holds("labels", "box2d"), f"a file of BDD100K, which is not read; {_EXPORT}"),
    (_has("data_row"), f"an export of Labelbox, which is not read; {_EXPORT}"),
    (_has("Labeled Data"), f"an export of Labelbox, which is not read; {_EXPORT}"),
    (_holds("label", "rectanglelabels"), _STUDIO),
    (_holds("bbox", "rectanglelabels"), _STUDIO),
)
_OBJECTS: tuple[tuple[Callable[[dict[str, Any]], bool], str], ...] = (
    (_has("shapes", "imagePath"), _LABELME),
    (_has("data", "annotations"), _STUDIO),
    (_has("_via_img_metadata"), f"a project of VIA, which is not read; {_EXPORT} there"),
    (_is_via, f"an export of VIA in its own JSON, which is not read; {_EXPORT} there"),
    (_holds("classes", "title", "shape"), f"a project of Supervisely, which is not read; {_EXPORT} there"),
    (_has("objects", "size", "tags"), f"a file of Supervisely (objects of one picture), which is not read; {_EXPORT}"),
    (_has("item", "annotations"), f"a file of Darwin (V7), which is not read; {_EXPORT} there"),
    (_has("items", "categories", "info"), f"a project of Datumaro, which is not read; {_EXPORT} there"),
    (_has("data_row"), f"an export of Labelbox, which is not read; {_EXPORT}"),
    (_has("frames", "videos"), f"annotations of videos, which are not read; {_EXPORT} frame by frame"),
    (_holds("annotations", "caption"), "captions of COCO, which have no boxes; send its instances_*.json"),
    (_holds("annotations", "segments_info"), "panoptic annotations of COCO, not read; send its instances_*.json"),
    (_has("annotations", "images"), "COCO without a list of categories; add it: [{id: 1, name: cat}, ...]"),
    (_has("images", "categories"), "COCO without annotations: it lists pictures and no box; add annotations"),
    (_has("annotations", "categories"), "COCO without a list of images; add it: [{id: 1, file_name: a.jpg}, ...]"),
    (
        lambda entry: entry.get("type") == "FeatureCollection",
        "GeoJSON, whose coordinates are not pixels; write COCO annotations from it",
    ),
)


# --- XML, text, tables ----------------------------------------------------------------------------------------


def _xml(tree: Tree) -> Iterator[Finding]:
    told: set[str] = set()
    for file in _of_suffix(tree, ".xml"):
        what = xml_kind(_first_bytes(tree, file)[:_HEAD])
        if what and what not in told:
            told.add(what)
            yield Finding(file, what)


def xml_kind(head: bytes) -> str | None:
    """What an XML file is that is no annotation of VOC, by its first element."""
    try:
        text = decode(head).text
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    if "<!DOCTYPE" in text.upper():
        return "XML with a DOCTYPE, which annotations do not need and which is not read"
    parser: Any = ElementTree.XMLPullParser(["start"])
    try:
        parser.feed(text)
        tags = [element.tag for _, element in parser.read_events()]
    except ElementTree.ParseError as error:
        return f"invalid XML: {error}"
    if not tags or tags[0] == "annotation":
        return None
    if tags[0] == "annotations" and {"image", "track", "meta"} & set(tags):
        return "an export of CVAT in its own XML, which is not read; export it as COCO, YOLO or Pascal VOC there"
    if tags[0] == "dataset" and "images" in tags:
        return "a file of dlib's imglab, which is not read; write COCO annotations from it"
    return f"XML whose first element is <{tags[0][:80]}>, not the <annotation> of Pascal VOC"


def _labels(tree: Tree) -> Iterator[Finding]:
    """Labels of YOLO whose data.yaml is missing, or text labels of another kind."""
    lists = class_lists(tree)
    labels = [file for file in _of_suffix(tree, ".txt") if file not in lists]
    for file in labels:
        try:
            lines = [line.split() for line in read_text(tree, file, _MOST).splitlines() if line.strip()]
        except UnreadableText:
            continue
        if lines and (what := _line_kind(lines[0])):
            if what != "yolo":
                yield Finding(file, f"{what}; write labels of YOLO or COCO annotations from it")
            else:
                names = class_list(tree, lists[0]) if lists else None
                told = ", ".join(map(json.dumps, names[:20])) if names else "cat, dog"
                source = f" (the names are those of {lists[0]})" if names else ""
                home = _images_folder(tree)
                yield Finding(
                    file,
                    f"YOLO labels, but there is no data.yaml; add one with two lines, train: {home} and names: "
                    f"[{told}{', ...' if names and len(names) > 20 else ''}]{source}",
                )
            return


def _images_folder(tree: Tree) -> str:
    folders = Counter(map(folder_of, tree.images()))
    if not folders:
        return "images"
    train = [folder for folder in folders if "train" in folder.lower()]
    return (train[0] if train else folders.most_common(1)[0][0]) or "."


def _line_kind(parts: list[str]) -> str | None:
    """By the first line of a text file of labels."""
    numbers = [bool(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", part)) for part in parts]
    if len(parts) >= 5 and all(numbers) and parts[0].isdecimal():
        return "yolo"
    if len(parts) in (15, 16) and not numbers[0] and all(numbers[1:]):
        return "labels of KITTI, which are not read"
    if len(parts) in (9, 10) and all(numbers[:8]) and not numbers[8]:
        return "labels of DOTA (boxes with an angle), which are not read"
    return None


def class_lists(tree: Tree) -> list[str]:
    """Files that are called like lists of class names."""
    named = (*_CLASS_LISTS, _NOTES)
    return sorted(file for file in tree.files if file.rpartition("/")[2].lower() in named or suffix(file) == ".names")[
        :_FILES
    ]


def class_list(tree: Tree, file: str) -> list[str] | None:
    """The names of a list of classes, a line each, or of Label Studio's notes; None for a file that is none."""
    try:
        text = read_text(tree, file, 1 << 20)
        names: list[Any] = [line.strip() for line in text.splitlines() if line.strip()]
        if file.rpartition("/")[2] == _NOTES:
            listed = json.loads(text)["categories"]
            names = [entry["name"] for entry in sorted(listed, key=lambda entry: int(entry["id"]))]
    except (UnreadableText, ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if names and all(map(is_class_name, names)) else None


def _tables(tree: Tree) -> Iterator[Finding]:
    for file in _of_suffix(tree, ".csv", ".tsv"):
        head = _first_bytes(tree, file)[:_HEAD].split(b"\n")[0].decode("utf-8-sig", "replace").strip()
        columns = {column.strip().strip('"').lower() for column in re.split(r"[,;\t]", head)}
        if "region_shape_attributes" in columns:
            yield Finding(file, f"an export of VIA as a table, which is not read; {_EXPORT} there")
        elif {"xmin", "ymin", "xmax", "ymax"} <= columns or {"x1", "y1", "x2", "y2"} <= columns:
            what = f"a table with a box a line ({short(head)}), which is not read; write COCO annotations from it"
            yield Finding(file, what)
        elif "file_name" in columns and file.rpartition("/")[2] != "metadata.csv":
            yield Finding(file, "a table with file_name; call it metadata.csv and put it beside its images")
        else:
            continue
        return
