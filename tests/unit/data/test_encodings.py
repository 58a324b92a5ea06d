"""Text that does not say what encoding it is in."""

from __future__ import annotations

import pytest

from fgd.data.encodings import decode, guess, known, marked

TEXTS = {
    "gb18030": "安全帽 反光衣 未佩戴安全帽 猫 狗",
    "cp932": "ヘルメット 猫 いぬ 作業員の安全帯",
    "big5": "安全帽 貓 狗 反光背心 計程車",
    "cp949": "고양이 강아지 안전모 자전거 교통 신호등 가방 나무 건물",
    "cp1252": "café, naïve, Größe, señal",
    "cp1251": "собака кошка пешеход",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_usual_code_pages_are_told_from_one_another(encoding: str) -> None:
    content = TEXTS[encoding].encode(encoding)
    decoded = decode(content)
    assert (decoded.text, decoded.encoding) == (TEXTS[encoding], encoding)
    assert decode(TEXTS[encoding].encode()).encoding == "utf-8"


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("cp932", ("ヘルメット", "人")),
        ("cp932", ("人",)),
        ("cp932", ("マスク", "ソファー")),
        ("big5", ("人", "卡車")),
        ("cp1252", ("bœuf",)),
        ("cp1252", ("Škoda", "œil")),
        ("cp1252", ("été", "à")),
        ("cp1252", ("Löwe", "Größe")),
    ],
)
def test_a_few_short_names_tell_latin_letters_from_pairs_with_an_ascii_byte(
    encoding: str, texts: tuple[str, ...]
) -> None:
    contents = [f"<object><name>{text}</name></object>".encode(encoding) for text in texts]
    assert guess(contents) == encoding


def test_all_files_decide_where_one_is_another_text_by_chance() -> None:
    cat, dog = "猫".encode("gbk"), "狗".encode("gbk")
    assert guess([cat]) == "utf-8", "two bytes that are the letter è"
    assert guess([cat, dog]) == "gb18030"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_marks_and_zeros_tell_unicode(encoding: str) -> None:
    assert decode("names: [猫]\ntrain: a".encode(encoding)).text == "names: [猫]\ntrain: a"


def test_bytes_that_are_no_text_are_none() -> None:
    assert marked(b"\0\0\0\0") is None
    with pytest.raises(UnicodeDecodeError):
        decode(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("name", "found"),
    [("GB2312", "gb18030"), ("utf8", "utf-8"), ("Shift_JIS", "cp932"), ("zip", None), ("idna", None), ("x" * 99, None)],
)
def test_only_encodings_of_text_are_known(name: str, found: str | None) -> None:
    assert known(name) == found
