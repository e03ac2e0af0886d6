"""Between the line and the ingest: what the self-test's probes say is for whoever runs the test, and no fact."""

import queue
from collections.abc import Callable, Iterable

from landreeve.wire.topics import ROOT

from landreeve_hub.broker.probe import Heard
from landreeve_hub.ingest.line import Message


class Tap:
    """Takes the messages of the named devices out of the stream. ``heard`` is where they go while a test listens."""

    def __init__(self, onward: Callable[[Message], None], fleet: str, names: Iterable[str]) -> None:
        self.heard: queue.Queue[Heard] = queue.Queue()
        self._onward = onward
        self._topics = tuple(f"{ROOT}/{fleet}/up/{name}/" for name in names)
        self._listening = False

    def listen(self, *, on: bool) -> None:
        """Keep what comes, or let it go."""
        self._listening = on
        while not self.heard.empty():
            self.heard.get_nowait()

    def take(self, message: Message) -> None:
        """For the line's ``on_message``."""
        if not message.topic.startswith(self._topics):
            self._onward(message)
            return
        message.acknowledge()
        if self._listening:
            self.heard.put(Heard(message.topic, message.payload, message.retained))
