"""Hosts of the tests' own: network namespaces on one bridge. Everything in them goes with the context.

    hub     the bridge; what all share listens here, each service on an address of its own
    a, b    a worker's host each: one cable to the bridge, a host name of its own

Only root has them, with `ip`, `nsenter` and `unshare`. No address or route is made outside the namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

RANGE = "10.213.7.0/24"
DATABASE, BROKER, STORE = "10.213.7.1", "10.213.7.2", "10.213.7.3"
ADDRESS = {"a": "10.213.7.11", "b": "10.213.7.12"}
NOBODY = "02:00:00:00:99:99"
"""A hardware address that no one has: what is sent there is lost without a word."""
CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """The reason why there are no such hosts here; None: there are."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "tc", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    name = f"fgd-{uuid.uuid4().hex[:6]}"
    try:
        _do("ip", "netns", "add", name)
        _do("ip", "-n", name, "link", "add", "x", "type", "veth", "peer", "name", "y")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.decode().strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@dataclass(frozen=True)
class Network:
    name: str

    def namespace(self, host: str) -> str:
        return f"{self.name}-{host}"

    def inside(self, host: str) -> list[str]:
        """What a command begins with that is to run on this host, under its name."""
        return [
            "nsenter", f"--net=/run/netns/{self.namespace(host)}", "unshare", "--uts", "sh", "-c",
            'hostname "$0"; exec "$@"', f"host-{host}",
        ]  # fmt: skip

    def cut(self, host: str) -> None:
        """Pull its cable, at the far end: the host itself notices nothing but silence."""
        _do("ip", "-n", self.namespace("hub"), "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        _do("ip", "-n", self.namespace("hub"), "link", "set", f"to-{host}", "up")

    def lose(self, host: str, service: str) -> None:
        """What the host sends to one service is lost; what comes from there arrives."""
        self._teach(host, "eth0", service)

    def lose_answers(self, host: str) -> None:
        """What the host sends arrives; what is sent to it is lost."""
        self._teach("hub", "bridge", ADDRESS[host])

    def find(self, host: str, service: str) -> None:
        _do("ip", "-n", self.namespace(host), "neigh", "del", service, "dev", "eth0")

    def find_answers(self, host: str) -> None:
        _do("ip", "-n", self.namespace("hub"), "neigh", "del", ADDRESS[host], "dev", "bridge")

    def slow(self, host: str) -> str | None:
        """25 to 100 ms each way and 1 % loss on its cable; the reason why not where the kernel has no netem."""
        netem = ["root", "netem", "delay", "125ms", "75ms", "loss", "1%"]
        try:
            _do("tc", "-n", self.namespace(host), "qdisc", "add", "dev", "eth0", *netem)
            _do("tc", "-n", self.namespace("hub"), "qdisc", "add", "dev", f"to-{host}", *netem)
        except (OSError, subprocess.CalledProcessError):
            return "this kernel has no netem"
        return None

    def hasten(self, host: str) -> None:
        for namespace, device in ((host, "eth0"), ("hub", f"to-{host}")):
            command = ["tc", "-n", self.namespace(namespace), "qdisc", "del", "dev", device, "root"]
            subprocess.run(command, capture_output=True, check=False)  # most often there is nothing to delete

    def as_on(self, host: str, call: Callable[[], T]) -> T:
        """`call` in a thread that stands on this host's network."""
        came: list[Any] = []

        def run() -> None:
            with open(f"/run/netns/{self.namespace(host)}") as there:
                if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            came.append(call())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert came, "it failed; the thread's traceback says why"
        return came[0]  # type: ignore[no-any-return]

    def _teach(self, host: str, device: str, address: str) -> None:
        where = ["to", address, "lladdr", NOBODY, "dev", device, "nud", "permanent"]
        _do("ip", "-n", self.namespace(host), "neigh", "replace", *where)


@contextmanager
def running() -> Iterator[Network]:
    net = Network(f"fgd-{uuid.uuid4().hex[:6]}")
    hub = net.namespace("hub")
    try:
        _in(hub, "link", "add", "bridge", "type", "bridge", made=True)
        for address in (DATABASE, BROKER, STORE):
            _in(hub, "addr", "add", f"{address}/24", "dev", "bridge")
        for device in ("lo", "bridge"):
            _in(hub, "link", "set", device, "up")
        for host, address in ADDRESS.items():
            there = net.namespace(host)
            _in(there, "link", "set", "lo", "up", made=True)
            _in(hub, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", there)
            _in(hub, "link", "set", f"to-{host}", "master", "bridge", "up")
            _in(there, "addr", "add", f"{address}/24", "dev", "eth0")
            _in(there, "link", "set", "eth0", "up")
        yield net
    finally:
        for host in ("hub", *ADDRESS):
            with contextlib.suppress(subprocess.CalledProcessError):
                _do("ip", "netns", "del", net.namespace(host))


def _in(namespace: str, *words: str, made: bool = False) -> None:
    if made:
        _do("ip", "netns", "add", namespace)
    _do("ip", "-n", namespace, *words)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
