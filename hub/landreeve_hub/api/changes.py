"""Who watches live is told which part changed; what it is they read from the API."""

import asyncio
import json
from collections.abc import AsyncIterator

HEARTBEAT_S = 15.0


class Changes:
    """Call `say` from the event loop's thread."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()

    def say(self, part: str) -> None:
        """A part of the API's answers changed: ``fleet``, ``rollouts``, ``releases``, ``incidents`` …"""
        for watcher in self._watchers:
            watcher.tell(part)

    async def stream(self, closing: asyncio.Event) -> AsyncIterator[bytes]:
        """Server-sent events until ``closing``: message ``changed`` with ``{"part": …}``, and a heartbeat."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        ending = asyncio.create_task(closing.wait())
        try:
            yield b"retry: 2000\n\n"
            while not closing.is_set():
                for part in await watcher.next(ending):
                    yield f"event: changed\ndata: {json.dumps({'part': part})}\n\n".encode()
                yield b": here\n\n"
        finally:
            ending.cancel()
            self._watchers.discard(watcher)


class _Watcher:
    """Remembers each changed part once, so a slow reader costs a few words, never a queue without end."""

    def __init__(self) -> None:
        self._parts: dict[str, None] = {}
        self._news = asyncio.Event()

    def tell(self, part: str) -> None:
        self._parts[part] = None
        self._news.set()

    async def next(self, ending: asyncio.Task[bool]) -> list[str]:
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait({news, ending}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        self._news.clear()
        parts, self._parts = list(self._parts), {}
        return parts
