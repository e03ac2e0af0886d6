"""Arrays in memory that two processes share, and the small signals that tell of them.

A *channel* is a private socket pair and two arenas: the front writes requests into one, the host answers into the
other. Only 16 bytes cross the socket, so a call costs the two wake-ups and one copy each way. An arena grows and is
sealed against shrinking: a process that reads memory which its partner took away would be killed (SIGBUS).
Source: memfd_create(2), fcntl(2) "File Sealing".
"""

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from landreeve_agent.serving.errors import ServingError
from landreeve_agent.serving.recorder import shared_memory

Array = NDArray[Any]

FIRST_BYTES = 256 * 1024
MAX_BYTES = 2 * 1024**3
_ALIGN = 64  # a cache line: runtimes read aligned input without copying it
_MAX_LAYOUTS = 64
_SIGNAL = struct.Struct("<IIQ")
_SIGNAL_BYTES = _SIGNAL.size
_TEXTS = "OUS"  # kinds of dtype whose elements are strings


class Signal(IntEnum):
    """What a signal says; its text, if any, is at the arena's beginning."""

    RUN = 1
    ANSWERED = 2
    FAILED = 3
    OPEN = 4
    OPENED = 5
    REFUSED = 6


class ChannelClosedError(ServingError):
    """The process at the other end has gone."""


class SilentError(ServingError):
    """The process at the other end did not answer in time."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the arrays of one call lie, and views on those places; ``texts`` are the indices of string tensors."""

    views: tuple[Array, ...]
    texts: tuple[int, ...]


class Arena:
    """One direction's memory. The writer grows it; the reader follows by the size that the signal names."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._layouts: dict[bytes, _Layout] = {}
        self._heads: dict[tuple[Any, ...], bytes] = {}
        self.size = 0
        self.follow(os.fstat(descriptor).st_size)

    @classmethod
    def create(cls) -> "Arena":
        """New memory that only a process given its descriptor can reach."""
        return cls(shared_memory(FIRST_BYTES))

    @property
    def descriptor(self) -> int:
        """Of the memory; to be inherited by the other process."""
        return self._descriptor

    def follow(self, size: int) -> None:
        """Map the memory anew when it has grown to ``size``."""
        if size <= self.size:
            return
        # Not mmap.resize: it refuses while views exist. The old map goes with the last of them.
        self._map = mmap.mmap(self._descriptor, size)
        self._layouts.clear()
        self.size = size

    def close(self) -> None:
        """Give the memory back, as soon as nobody looks at it."""
        self._layouts.clear()
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self._descriptor)

    # --- texts

    def write_text(self, text: bytes) -> int:
        """Put a message at the beginning; its length."""
        self._grow(len(text))
        self._map[: len(text)] = text
        return len(text)

    def read_text(self, length: int) -> bytes:
        """The message at the beginning."""
        return self._map[:length]

    # --- arrays

    def write(self, arrays: Sequence[Array]) -> int:
        """Put the arrays into the memory behind their description; the description's length."""
        key = tuple([(array.dtype, array.shape) for array in arrays])
        head = self._heads.get(key)
        if head is None:
            if any(array.dtype.kind in _TEXTS for array in arrays):
                return self._write_texts(arrays)
            head = self._describe(key, [[], *[(dtype.str, shape) for dtype, shape in key]])
        return self._write(head, arrays)

    def _write_texts(self, arrays: Sequence[Array]) -> int:
        texts = [i for i, array in enumerate(arrays) if array.dtype.kind in _TEXTS]
        arrays = [_packed(array) if i in texts else array for i, array in enumerate(arrays)]
        specs = [(array.dtype.str, array.shape) for array in arrays]
        return self._write(msgspec.msgpack.encode([texts, *specs]), arrays)

    def _write(self, head: bytes, arrays: Sequence[Array]) -> int:
        layout = self._layouts.get(head)
        if layout is None:
            self._grow(len(head) + sum(array.nbytes + _ALIGN for array in arrays))
            layout = self._lay(head)
        for view, array in zip(layout.views, arrays, strict=True):
            view[...] = array
        self._map[: len(head)] = head
        return len(head)

    def read(self, head_bytes: int) -> tuple[Array, ...]:
        """The arrays described at the beginning: views, valid until the writer writes again."""
        head = self._map[:head_bytes]
        layout = self._layouts.get(head) or self._lay(head)
        if not layout.texts:
            return layout.views
        return tuple(_unpacked(v) if i in layout.texts else v for i, v in enumerate(layout.views))

    def _describe(self, key: tuple[Any, ...], told: object) -> bytes:
        if len(self._heads) >= _MAX_LAYOUTS:
            self._heads.clear()
        head = self._heads[key] = msgspec.msgpack.encode(told)
        return head

    def _lay(self, head: bytes) -> _Layout:
        texts, *specs = msgspec.msgpack.decode(head)
        offset, places = len(head), []
        for name, shape in specs:
            dtype = np.dtype(name)
            offset = -(-offset // _ALIGN) * _ALIGN
            count = int(np.prod(shape, dtype=np.int64))
            places.append((dtype, shape, count, offset))
            offset += dtype.itemsize * count
        if offset > self.size:
            raise ChannelClosedError(f"arrays of {offset} bytes are told of, and there are {self.size}")
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        views = tuple(np.frombuffer(self._map, d, count, at).reshape(shape) for d, shape, count, at in places)
        layout = self._layouts[head] = _Layout(views, tuple(texts))
        return layout

    def _grow(self, needed: int) -> None:
        if needed <= self.size:
            return
        if needed > MAX_BYTES:
            raise ChannelClosedError(f"tensors of {needed} bytes in one call; at most {MAX_BYTES} are possible")
        size = -(-needed * 5 // 4 // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self._descriptor, size)
        self.follow(size)


def _packed(array: Array) -> Array:
    """A string tensor as bytes: its shape and elements as msgpack."""
    return np.frombuffer(msgspec.msgpack.encode((array.shape, array.ravel().tolist())), np.uint8)


def _unpacked(packed: Array) -> Array:
    shape, elements = msgspec.msgpack.decode(packed.tobytes())
    return np.array(elements, dtype=object).reshape(shape)


class Channel:
    """One end of a conversation in turns: one call at a time, each answered before the next."""

    def __init__(self, own: socket.socket, out: Arena, into: Arena) -> None:
        self._socket = own
        self._send, self._recv = own.sendall, own.recv
        self._out = out
        self._into = into

    def set_patience(self, seconds: float) -> None:
        """How long `receive` waits before it raises `SilentError`."""
        # The kernel's own timeout: Python's would poll before every recv, 1 µs of a call.
        whole = int(seconds)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, int((seconds - whole) * 1e6))
        )

    def send(self, signal: int, arrays: Sequence[Array]) -> None:
        """Send arrays. `ChannelClosedError` when nobody is there."""
        self._signal(signal, self._out.write(arrays))

    def send_text(self, signal: int, text: bytes) -> None:
        """Send a message."""
        self._signal(signal, self._out.write_text(text))

    def _signal(self, signal: int, length: int) -> None:
        try:
            self._send(_SIGNAL.pack(signal, length, self._out.size))
        except OSError as error:
            raise ChannelClosedError(f"nobody listens: {error}") from error

    def receive(self) -> tuple[int, int]:
        """The next signal and the length of its text. `ChannelClosedError`, `SilentError`."""
        try:
            got = self._recv(_SIGNAL_BYTES)
            while 0 < len(got) < _SIGNAL_BYTES:
                more = self._recv(_SIGNAL_BYTES - len(got))
                got = got + more if more else b""
        except BlockingIOError as error:
            raise SilentError("no answer in time") from error
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not got:
            raise ChannelClosedError("the other process has ended")
        signal, length, size = _SIGNAL.unpack(got)
        if size > self._into.size:
            self._into.follow(size)
        return signal, length

    def arrays(self, head_bytes: int) -> tuple[Array, ...]:
        """The arrays of the signal just received, valid until the next one."""
        return self._into.read(head_bytes)

    def text(self, length: int) -> bytes:
        """The message of the signal just received."""
        return self._into.read_text(length)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._out.close()
        self._into.close()
