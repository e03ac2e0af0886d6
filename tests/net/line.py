"""A line between two network namespaces, bad as it is told: ``python line.py SITE_NAMESPACE HUB_NAMESPACE``.

Two TUN devices, one in each namespace, and this process between them as the wire: it loses, delays and throttles
packets, cuts one direction, translates source ports as a router does and forgets its table, or sends what is meant for
the broker to a portal. TCP, TLS and MQTT above it are the kernel's and the product's own. Where the kernel has
``tc netem``, loss, delay and rate are left to it, and this process only forwards.

Commands come as lines of JSON on standard input: any of ``loss`` (0 to 1, each way), ``delay_ms`` (each way),
``rate_kbit`` (0: unlimited), ``cut_up``, ``cut_down``, ``rebind`` (forget the table), ``portal`` (a port, 0: none).
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
SITE, HUB = "10.77.0.2", "10.77.0.1"
MTU = 1500
TCP = 6
MOST_WAITING = 1000  # packets each way: more are lost, as in a router's queue
BROKER_PORT, PORTAL_PORT = 8883, 9443
FLEET, DEVICE = "net", "d-net"


def enter(namespace: str) -> None:
    """Go into a named namespace, with this thread."""
    fd = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.close(fd)


def open_tun(namespace: str, own: str, other: str) -> int:
    """A TUN device in the namespace, up and with its address; the file to read and write packets."""
    enter(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", b"line", IFF_TUN | IFF_NO_PI))
    for words in (f"addr add {own} peer {other} dev line", f"link set line up mtu {MTU}", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True)
    return fd


@dataclass
class Way:
    """One direction: what waits to leave, and when the line is free again."""

    out: int
    waiting: list[tuple[float, int, bytes]] = field(default_factory=list)
    free_at: float = 0.0


@dataclass
class Faults:
    """What is wrong with the line now."""

    loss: float = 0.0
    delay_ms: float = 0.0
    rate_kbit: float = 0.0
    cut_up: bool = False
    cut_down: bool = False
    portal: int = 0


class Translator:
    """Source ports as a router changes them. After `forget`, only a SYN makes a new entry: the rest is dropped, as by
    a router that tracks connections strictly."""

    def __init__(self) -> None:
        self._ports = itertools.count(20_000)
        self._outside: dict[int, int] = {}
        self._inside: dict[int, int] = {}

    def forget(self) -> None:
        self._outside.clear()
        self._inside.clear()

    def up(self, packet: bytearray, at: int) -> bool:
        own = int.from_bytes(packet[at : at + 2], "big")
        if own not in self._outside:
            if not packet[at + 13] & 0x02:
                return False
            taken = next(self._ports)
            self._outside[own], self._inside[taken] = taken, own
        rewrite(packet, at, at, self._outside[own])
        return True

    def down(self, packet: bytearray, at: int) -> bool:
        port = int.from_bytes(packet[at + 2 : at + 4], "big")
        if port not in self._inside:
            return False
        rewrite(packet, at, at + 2, self._inside[port])
        return True


def rewrite(packet: bytearray, tcp: int, place: int, port: int) -> None:
    """Another port, and the checksum that goes with it (RFC 1624)."""
    old = int.from_bytes(packet[place : place + 2], "big")
    total = int.from_bytes(packet[tcp + 16 : tcp + 18], "big")
    total = (~total & 0xFFFF) + (~old & 0xFFFF) + port
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[place : place + 2] = port.to_bytes(2, "big")
    packet[tcp + 16 : tcp + 18] = (~total & 0xFFFF).to_bytes(2, "big")


class Line:
    def __init__(self, site: int, hub: int, *, netem: bool, seed: int = 7) -> None:
        self.faults = Faults()
        self._site, self._hub = site, hub
        self._up, self._down = Way(hub), Way(site)
        self._netem = netem
        self._translator = Translator()
        self._chance = random.Random(seed)
        self._number = itertools.count()

    def command(self, text: str) -> None:
        asked = json.loads(text)
        if asked.pop("rebind", False):
            self._translator.forget()
        for name, value in asked.items():
            setattr(self.faults, name, value)

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self._site, self._hub, sys.stdin], [], [], self._next_s())
            if sys.stdin in ready:
                text = sys.stdin.readline()
                if not text:
                    return
                self.command(text)
                sys.stdout.write("done\n")
                sys.stdout.flush()
            for fd, way in ((self._site, self._up), (self._hub, self._down)):
                if fd in ready:
                    self._take(fd, way)
            self._let_go()

    def _next_s(self) -> float | None:
        due = [way.waiting[0][0] for way in (self._up, self._down) if way.waiting]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _take(self, fd: int, way: Way) -> None:
        try:
            packet = bytearray(os.read(fd, 65_536))
        except BlockingIOError:
            return
        upward = way is self._up
        if not self._passes(packet, upward=upward):
            return
        faults, now = self.faults, time.monotonic()
        due = now
        if not self._netem:
            if self._chance.random() < faults.loss or len(way.waiting) >= MOST_WAITING:
                return
            if faults.rate_kbit:
                way.free_at = max(now, way.free_at) + len(packet) * 8 / (faults.rate_kbit * 1000)
                due = way.free_at
            due += faults.delay_ms / 1000
        heapq.heappush(way.waiting, (due, next(self._number), bytes(packet)))

    def _passes(self, packet: bytearray, *, upward: bool) -> bool:
        if self.faults.cut_up if upward else self.faults.cut_down:
            return False
        if packet[0] >> 4 != 4 or packet[9] != TCP:
            return False
        tcp = (packet[0] & 0x0F) * 4
        if upward:
            return self._translator.up(packet, tcp) and self._divert(
                packet, tcp, tcp + 2, BROKER_PORT, self.faults.portal
            )
        return self._divert(packet, tcp, tcp, self.faults.portal, BROKER_PORT) and self._translator.down(packet, tcp)

    def _divert(self, packet: bytearray, tcp: int, place: int, old: int, new: int) -> bool:
        """While there is a portal, what is for the broker goes to it, and its answers come as the broker's."""
        if self.faults.portal and int.from_bytes(packet[place : place + 2], "big") == old:
            rewrite(packet, tcp, place, new)
        return True

    def _let_go(self) -> None:
        now = time.monotonic()
        for way in (self._up, self._down):
            while way.waiting and way.waiting[0][0] <= now:
                _, _, packet = heapq.heappop(way.waiting)
                with contextlib.suppress(BlockingIOError):  # the other end's queue is full: lost, as on any line
                    os.write(way.out, packet)


def main() -> None:
    site = open_tun(sys.argv[1], SITE, HUB)
    hub = open_tun(sys.argv[2], HUB, SITE)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    Line(site, hub, netem="netem" in sys.argv[3:]).run()


if __name__ == "__main__":
    main()
