"""A written name is that of one file, however it is spelled, or of none."""

from __future__ import annotations

from functools import cache

import pytest

from fgd.data.matching import Match, Several, WrittenName, ends_of, find_files, leads_out, normalised, pair_companions
from fgd.data.tree import Split


def find(
    name: str, *files: str, homes: tuple[str, ...] = (), split: Split | None = None, others: tuple[str, ...] = ()
) -> str | None:
    """The file of a name among these files; others: names beside it."""
    wanted = [WrittenName(text, homes, split) for text in (name, *others)]
    match = find_files(wanted, frozenset(files), cache(lambda: ends_of(files)))[wanted[0]]
    return match.file if isinstance(match, Match) else None


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("x//a.jpg", "x/a.jpg"),
        ("/home/me/a.jpg", "home/me/a.jpg"),
        ("x/../a.jpg", "a.jpg"),
        ("../../x/a.jpg", "x/a.jpg"),
        ("D:\\sets\\x\\a.jpg", "sets/x/a.jpg"),
        ("/D:/sets/a.jpg", "sets/a.jpg"),
        ("a:b.jpg", "a:b.jpg"),
        ("file:///sets/a.jpg", "sets/a.jpg"),
        ("s3://bucket/x/a.jpg", "bucket/x/a.jpg"),
        ("/data/local-files/?d=x/a.jpg", "x/a.jpg"),
        ("..", ""),
        ("/", ""),
        (" x/a.jpg\n", "x/a.jpg"),
        ("a\0.jpg", ""),
    ],
)
def test_normalised(written: str, path: str) -> None:
    assert normalised(written) == path


@pytest.mark.parametrize("written", ["/a", "\\a", "x/../a", "..\\a", "C:\\a", "C:/a"])
def test_names_that_taken_by_the_word_lie_elsewhere(written: str) -> None:
    assert leads_out(written)
    assert not leads_out("a..b/c:d.jpg")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("..\\..\\media\\upload\\4\\a.jpg", "images/a.jpg"),
        ("/home/me/images/a.jpg", "images/a.jpg"),
        ("C:\\sets\\images\\a.jpg", "images/a.jpg"),
        ("https://host/x/a.jpg?raw=true", "images/a.jpg"),
        ("my%20photo.jpg", "images/my photo.jpg"),
        ("my%2520photo.jpg", "images/my photo.jpg"),
        ("my photo.jpg", "images/my%20photo.jpg"),
        ("images%2Fa.jpg", "images/a.jpg"),
        ("caf\u00e9.jpg", "images/cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "images/caf\u00e9.jpg"),
        ("caf%C3%A9.jpg", "images/cafe\u0301.jpg"),
        ("Images/A.JPG", "images/a.jpg"),
        ("at 4.31 PM.png", "images/at 4.31\u202fPM.png"),
        ("my_photo.jpg", "images/my photo.jpg"),
        ("1f2e3d4c-a.jpg", "images/a.jpg"),
        ("a.jpg", "images/1f2e3d4c-a.jpg"),
        ("a.jpeg", "images/a.JPG"),
        ("000001", "images/000001.jpg"),
    ],
)
def test_spellings(name: str, file: str) -> None:
    assert find(name, file, "images/other.jpg") == file


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("x/images/a.jpg", ["cats/a.jpg", "dogs/images/a.jpg"], "dogs/images/a.jpg"),  # the longest end
        ("a.jpg", ["cats/a.jpg", "dogs/a.jpg"], None),  # an end that two have
        ("x/a.jpg", ["cats/A.jpg", "dogs/a.jpg"], "dogs/a.jpg"),  # spelled more alike
        ("X/a.jpg", ["x/a.jpg", "dogs/a.jpg"], "x/a.jpg"),  # a longer end, spelled less alike, tells two apart
        ("train/a.jpg", ["val/a.jpg", "train/b.jpg"], None),
        ("train/x/a.jpg", ["val/x/a.jpg", "train/a.jpg"], None),
        ("train/y/a.jpg", ["val/x/a.jpg", "train/a.jpg"], "train/a.jpg"),
        ("cam1/a.jpg", ["cam2/a.jpg", "cam1/b.jpg"], None),  # its folder is there, and without it
        ("cam1/a.jpg", ["cam2/a.jpg", "cam2/b.jpg"], "cam2/a.jpg"),
        ("cam1/images/a.jpg", ["cam2/images/a.jpg", "cam1/images/b.jpg"], None),
        ("cam1/a.jpg", ["a.jpg", "cam1/b.jpg"], "a.jpg"),
        ("images/a.jpg", ["images/2024/a.jpg", "images/2025/b.jpg"], "images/2024/a.jpg"),
        ("train/a.jpg", ["test/images/a.jpg", "test/images/b.jpg"], None),  # what all share, but so plainly
        ("train/a.jpg", ["my test/images/a.jpg", "my test/images/b.jpg"], "my test/images/a.jpg"),
        ("b.jpg", ["a.jpg"], None),
        ("a", ["a.jpg", "a.png"], None),
    ],
)
def test_which_file_it_is(name: str, files: list[str], expected: str | None) -> None:
    assert find(name, *files, others=("val/x.jpg",)) == expected


def test_a_folder_that_all_names_share_says_nothing_about_splits() -> None:
    assert find("/test-data/a.jpg", "train/a.jpg", "val/b.jpg", others=("/test-data/b.jpg",)) == "train/a.jpg"


def test_a_file_that_is_named_exactly_is_not_that_of_another_name() -> None:
    assert find("x/a.jpg", "images/a.jpg", homes=("images",), others=("a.jpg",)) is None
    assert find("x/a.jpg", "images/a.jpg", homes=("images",), others=("b.jpg",)) == "images/a.jpg"


def test_a_file_that_two_names_mean_is_of_the_one_with_more_in_common() -> None:
    assert find("4/a.jpg", "images/a.jpg", others=("5/a.jpg",)) is None
    assert find("x/images/a.jpg", "images/a.jpg", others=("5/a.jpg",)) == "images/a.jpg"
    assert find("5/a.jpg", "images/a.jpg", others=("x/images/a.jpg",)) is None


def test_one_name_in_two_lists_is_one_file() -> None:
    wanted = [WrittenName("x/a.jpg", (), split) for split in ("train", "val")]
    found = find_files(wanted, frozenset(["images/a.jpg"]), lambda: ends_of(["images/a.jpg"]))
    assert [match.file for match in found.values() if isinstance(match, Match)] == ["images/a.jpg"] * 2


def test_of_several_files_the_folder_near_the_list_has_it() -> None:
    files = ["one/images/a.jpg", "two/images/a.jpg"]
    name = WrittenName("C:\\a.jpg", (), None, "two")
    assert find_files([name], frozenset(files), lambda: ends_of(files))[name] == Match("two/images/a.jpg", 1, 0)
    name = WrittenName("C:\\a.jpg", (), None, "")
    assert find_files([name], frozenset(files), lambda: ends_of(files))[name] == Several(tuple(files))


@pytest.mark.timeout(60)
def test_many_names_and_many_folders_with_the_same_files() -> None:
    files = [f"d{folder}/{name}.jpg" for folder in range(500) for name in range(40)]
    names = [WrittenName(f"/far/{n}/{n % 40}.jpg") for n in range(4_000)]
    assert not any(isinstance(m, Match) for m in find_files(names, frozenset(files), lambda: ends_of(files)).values())
    deep = ["/".join(["x"] * 400 + [f"{n}.jpg"]) for n in range(500)]
    names = [WrittenName("/".join(["train", *["x"] * 300, f"{n}.jpg"])) for n in range(500)]
    found = find_files(names, frozenset(deep), lambda: ends_of(deep))
    assert [match.file for match in found.values() if isinstance(match, Match)] == deep


def paired(images: list[str], labels: list[str]) -> dict[str, str | None]:
    found = pair_companions(images, labels, images, labels)
    return {image: match.file if isinstance(match, Match) else None for image, match in found.items()}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("Images/train/a.jpg", "Labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/train/caf\u00e9.png", "labels/train/cafe\u0301.txt"),
        ("images/train/a b.png", "labels/train/a%20b.txt"),
        ("images/train/A.JPG", "labels/train/a.txt"),
        ("images/a.jpg", "labels/a.jpg.txt"),
        ("images/2024/a.jpg", "labels/a.txt"),
        ("images/a.jpg", "yolo/2024/a.txt"),
        ("JPEGImages/a.jpg", "Annotations/xmls/a.xml"),
    ],
)
def test_labels_of_an_image(image: str, label: str) -> None:
    assert paired([image], [label, "labels/train/other.txt"]) == {image: label}


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/val/a.jpg", ["labels/train/a.txt"]),
        ("images/cam1/a.jpg", ["labels/cam2/a.txt", "labels/cam1/b.txt"]),
        ("images/a.jpg", ["labels/b.txt"]),
        ("images/background/a.jpg", ["labels/night/a.txt"]),
    ],
)
def test_labels_of_another_image(image: str, labels: list[str]) -> None:
    assert paired([image, "images/train/z.jpg", "images/night/z.jpg"], labels) == {}


def test_labels_that_two_images_could_have_belong_to_the_nearer() -> None:
    assert paired(["a/cam1/x.jpg", "a/cam2/x.jpg"], ["b/cam1/x.txt"]) == {"a/cam1/x.jpg": "b/cam1/x.txt"}
    both = ["a/cam1/x.jpg", "a/cam2/x.jpg"]
    assert paired(both, ["b/x.txt"]) == dict.fromkeys(both)
    assert paired(["images/a.jpg", "images/a.png"], ["Labels/A.txt"]) == dict.fromkeys(
        ["images/a.jpg", "images/a.png"], "Labels/A.txt"
    )
