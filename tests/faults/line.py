"""The line between a site and its hub's broker: a forwarder that can be cut, and that can spoil what it carries."""

import socket
import threading
from contextlib import suppress

PIECE = 65_536


class Line:
    """Forwards a port of its own to ``target``. TLS goes through unread, as through any router."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = threading.Event()
        self._whole.set()
        self._spoil = 0
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self.spoilt = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing comes through any more, and what is connected is gone."""
        self._whole.clear()
        with self._lock:
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole.set()

    def spoil(self, pieces: int) -> None:
        """Flip a bit in so many of the next large pieces on their way to the site."""
        self._spoil = pieces

    def close(self) -> None:
        self.cut()
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            if not self._whole.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, down in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._carry, args=(source, sink, down), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE):
                if not self._whole.is_set():
                    break
                sink.sendall(self._flipped(data) if down else data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._sockets -= {source, sink}

    def _flipped(self, data: bytes) -> bytes:
        if not self._spoil or len(data) < 4096:
            return data
        self._spoil -= 1
        self.spoilt += 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
