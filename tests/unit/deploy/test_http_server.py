"""What a connection may cost, with real sockets and a clock that the test turns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from uvicorn.server import ServerState

from deploy import http_server
from deploy.http_server import (
    ANSWER_SILENT_S,
    BODY_SILENT_S,
    BODY_WINDOW_S,
    HEAD_S,
    MAX_HEAD_BYTES,
    BoundedProtocol,
    close_slow,
)

PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Clock(asyncio.SelectorEventLoop):
    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class Door:
    """A server of one application, in this loop."""

    def __init__(self, app: Any, loop: Clock) -> None:
        self.loop = loop
        self.state = ServerState()
        self.writers: list[asyncio.StreamWriter] = []
        self.config = http_server.config(app, lifespan="off")
        self.config.load()
        self.protocol = lambda: BoundedProtocol(self.config, self.state, {}, loop)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        before = set(self.state.connections)
        server = await self.loop.create_server(self.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while self.state.connections == before:
            await asyncio.sleep(0)
        server.close()
        self.writers.append(writer)
        return reader, writer

    async def pass_time(self, seconds: float) -> None:
        """As the server's own ticks see it: each second once, here in steps of five."""
        await asyncio.sleep(0.01)  # what was sent arrives
        for _ in range(int(seconds / 5)):
            self.loop.ahead_s += 5
            close_slow(self.state.connections, self.loop.time())
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    @property
    def open(self) -> bool:
        return bool(self.state.connections)


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def waits(scope: Any, receive: Any, send: Any) -> None:
    """As an event stream on which nothing happens, or an application that does not come to read."""
    await asyncio.sleep(1e6)


async def floods(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})


Script = Callable[[Door], Awaitable[None]]


@pytest.fixture
def play() -> Iterator[Callable[[Any, Script], None]]:
    loop = Clock()

    async def act(script: Script, door: Door) -> None:
        try:
            await script(door)
        finally:
            for writer in door.writers:
                writer.transport.abort()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.001)

    yield lambda app, script: loop.run_until_complete(act(script, Door(app, loop)))
    loop.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * (MAX_HEAD_BYTES // 4) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES,
        b"GET /" + b"x" * 2 * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["one long field", "many short fields", "without end", "a long address"],
)
def test_a_head_above_64_kib_is_a_431(play: Any, head: bytes) -> None:
    async def script(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(head)
        top, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 431 ")
        assert b"application/problem+json" in top
        assert json.loads(body)["code"] == "request_header_fields_too_large"

    play(reads_all, script)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n", b"204"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"204"),
    ],
    ids=["just small enough", "two hosts", "nonsense", "a websocket is a plain GET"],
)
def test_other_heads(play: Any, head: bytes, status: bytes) -> None:
    async def script(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(head)
        assert (await reader.readline()).split()[1] == status

    play(reads_all, script)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2]])
def test_a_connection_on_which_no_request_comes_is_closed(play: Any, sent: bytes) -> None:
    async def script(door: Door) -> None:
        _, writer = await door.connect()
        writer.write(sent)
        await door.pass_time(HEAD_S - 5)
        assert door.open
        await door.pass_time(10)
        assert not door.open

    play(reads_all, script)


def test_half_a_request_after_a_whole_one_is_closed_too(play: Any) -> None:
    async def script(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(GET)
        assert b"204" in await reader.readline()
        writer.write(GET[:10])
        await door.pass_time(HEAD_S + 5)
        assert not door.open

    play(reads_all, script)


def test_a_body_that_stops_is_cut(play: Any) -> None:
    async def script(door: Door) -> None:
        _, writer = await door.connect()
        writer.write(PUT + b"x" * 100_000)
        await door.pass_time(BODY_SILENT_S - 5)
        assert door.open
        await door.pass_time(15)
        assert not door.open

    play(reads_all, script)


@pytest.mark.parametrize(("piece", "lives"), [(b"x", False), (b"x" * 5000, True)])
def test_a_body_may_take_for_ever_but_not_drip(play: Any, piece: bytes, lives: bool) -> None:
    async def script(door: Door) -> None:
        _, writer = await door.connect()
        writer.write(PUT)
        for _ in range(int(4 * BODY_WINDOW_S / 5)):
            writer.write(piece)
            await door.pass_time(5)
        assert door.open == lives

    play(reads_all, script)


def test_a_body_that_drips_on_after_its_answer_is_cut(play: Any) -> None:
    async def answers_at_once(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def script(door: Door) -> None:
        _, writer = await door.connect()
        writer.write(PUT)
        for _ in range(int(4 * BODY_WINDOW_S / 2)):
            writer.write(b"x")
            await door.pass_time(5)
        assert not door.open

    play(answers_at_once, script)


EXPECTS = PUT.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")


@pytest.mark.parametrize(
    "sent",
    [GET, PUT + b"x" * 100_000, EXPECTS],
    ids=["an event stream", "a body nobody reads", "a body nobody asked for"],
)
def test_nobody_is_closed_for_what_the_application_takes(play: Any, sent: bytes) -> None:
    async def script(door: Door) -> None:
        _, writer = await door.connect()
        writer.write(sent)
        await door.pass_time(3600)
        assert door.open

    play(waits, script)


def test_a_server_that_was_held_up_blames_nobody_for_it(play: Any) -> None:
    async def script(door: Door) -> None:
        server = http_server.Server(door.config)
        server.server_state = door.state
        await door.connect()
        await server.on_tick(0)
        door.loop.ahead_s += 10 * HEAD_S
        await server.on_tick(0)
        await asyncio.sleep(0.01)
        assert door.open
        door.loop.ahead_s += 1
        await server.on_tick(0)
        await asyncio.sleep(0.01)
        assert not door.open

    play(reads_all, script)


def test_an_answer_that_nobody_reads_is_given_up(play: Any) -> None:
    async def script(door: Door) -> None:
        reader, writer = await door.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        await asyncio.sleep(0.05)
        await door.pass_time(ANSWER_SILENT_S - 5)
        assert door.open
        await door.pass_time(15)
        assert not door.open

    play(floods, script)
