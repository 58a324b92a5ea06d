from __future__ import annotations

import json

import pytest
from fastapi.sse import format_sse_event
from hypothesis import given, settings
from hypothesis import strategies as st

from fgd.client import sse

NOT_LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"


def heard(*chunks: bytes) -> list[sse.ServerSent]:
    return [event for event in sse.parse(chunks) if event is not None]


def test_lines_end_with_cr_lf_or_both_however_the_bytes_arrive() -> None:
    stream = b"\xef\xbb\xbfdata: one\r\ndata:two\rdata:  three\n\r\n: ping\r\rid: 7\nevent: end\ndata\n\n"
    wanted = [sse.ServerSent("message", "one\ntwo\n three", "", None), sse.ServerSent("end", "", "7", None)]

    assert heard(stream) == wanted
    assert heard(*(stream[n : n + 1] for n in range(len(stream)))) == wanted


def test_what_python_takes_for_a_line_end_is_text() -> None:
    assert [event.data for event in heard(f"data: {NOT_LINE_ENDS}\n\n".encode())] == [NOT_LINE_ENDS]


def test_an_event_that_breaks_off_is_none() -> None:
    assert heard(b"data: 1\n\ndata: 2\n") == heard(b"data: 1\n\n")


def test_comments_are_signs_of_life_and_unknown_fields_nothing() -> None:
    assert list(sse.parse([b": ping\n\nfoo: 1\nid: a\0b\nretry: 5s\nretry: 20\n\ndata: x\n\n"])) == [
        None,
        sse.ServerSent("message", "x", "", 20),
    ]


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST", 1000)
    with pytest.raises(sse.NotAStream):
        heard(*[b"data: " + b"x" * 100] * 20)
    with pytest.raises(sse.NotAStream):
        heard(*[b"data: " + b"x" * 100 + b"\n"] * 20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_what_the_server_writes_is_read_whatever_it_holds(texts: list[str], sizes: list[int], crlf: bool) -> None:
    told = [text.encode("utf-8", "replace").decode() for text in texts]
    wire = b"".join(
        format_sse_event(data_str=json.dumps(text, ensure_ascii=False), id=str(n)) for n, text in enumerate(told)
    )
    wire = wire.replace(b"\n", b"\r\n") if crlf else wire
    chunks = []
    while wire:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(wire[:size])
        wire = wire[size:]

    assert [json.loads(event.data) for event in heard(*chunks)] == told
