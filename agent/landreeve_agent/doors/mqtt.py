"""Models asked over a broker of the site, for machines that speak MQTT and no HTTP.

``python -m landreeve_agent.doors.mqtt --parent PID``, kept by the supervisor (`landreeve_agent.doors.child`). Rows
stay on the site: the broker is the site's own, never the hub's.

A request that came with QoS 1 is acknowledged after its answer was taken by the broker, so it is asked again after
any failure; a repeat gets the stored answer or, after a restart, a new one, and its row, which has the request's
id, is counted once.
"""

import logging
import queue
import random
import threading
import time
from collections import OrderedDict

import msgspec

from landreeve_agent.doors.broker import Broker, BrokerOptions, Delivery
from landreeve_agent.doors.connection import AGAIN, Connection, Server
from landreeve_agent.doors.errors import DoorError, UnreachableError
from landreeve_agent.doors.kept import Stop, live
from landreeve_agent.doors.requests import Asked, Refused, ReplyTo, answer_payload, error_payload, parse_request

logger = logging.getLogger(__name__)

_ANSWER_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
# A broker that is away longer is shown as a trouble of the box: the supervisor sees our end, and starts us again.
_PATIENCE_S = 30.0
_TELL_EVERY_S = 10.0


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``queue`` requests may wait, of ``queue_bytes`` together, while ``parallel`` are asked."""

    server: Server
    broker: BrokerOptions
    queue: int = 256
    parallel: int = 4
    queue_bytes: int = 64 * 1024 * 1024


class Answers:
    """The answers given last, by the key of their request; safe for threads."""

    def __init__(self, most: int = 4096, most_bytes: int = 16 * 1024 * 1024) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The answer, if it is still here."""
        with self._lock:
            return self._kept.get(key)

    def put(self, key: str, payload: bytes) -> None:
        """Keep it, and let the oldest go."""
        with self._lock:
            self._bytes += len(payload) - len(self._kept.pop(key, b""))
            self._kept[key] = payload
            while len(self._kept) > self._most or self._bytes > self._most_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])


class Bridge:
    """Takes requests from the broker, asks, answers. `run` returns when told to stop."""

    def __init__(self, options: MqttOptions) -> None:
        self._options = options
        self._waiting: queue.Queue[tuple[Broker, Delivery] | None] = queue.Queue(options.queue)
        self._bytes = 0
        self._answers = Answers()
        self._untold = 0
        self._told_at = 0.0
        self._lock = threading.Lock()

    def run(self, stop: Stop) -> None:
        """Keep a connection until ``stop``. `UnreachableError` when there was none for too long."""
        threads = [
            threading.Thread(target=self._work, name=f"asker {n}", daemon=True) for n in range(self._options.parallel)
        ]
        for thread in threads:
            thread.start()
        pause_s, up = _FIRST_PAUSE_S, time.monotonic()
        while not stop.wanted:
            try:
                self._one_connection(stop)
                pause_s, up = _FIRST_PAUSE_S, time.monotonic()
            except UnreachableError as error:
                if time.monotonic() - up > _PATIENCE_S:
                    raise
                logger.info("%s", error)
            # A site's machines all come back at the same moment after a power cut: spread.
            stop.wait(random.uniform(0.1, pause_s))  # noqa: S311 - only spreads load
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _one_connection(self, stop: Stop) -> None:
        broker = Broker.open(self._options.broker, self._receive)
        try:
            logger.info("requests are taken from %s:%d", self._options.broker.host, self._options.broker.port)
            while not stop.wanted and not broker.lost.wait(0.2):
                pass
        finally:
            broker.close()
        if not stop.wanted:
            logger.info("the connection to the broker was lost: %s", broker.reason)

    def _receive(self, broker: Broker, delivery: Delivery) -> None:
        """Runs in paho's thread: only queues, or says that it cannot."""
        size = len(delivery.incoming.payload)
        with self._lock:
            fits = self._bytes == 0 or self._bytes + size <= self._options.queue_bytes
            self._bytes += size if fits else 0
        if fits:
            try:
                self._waiting.put_nowait((broker, delivery))
            except queue.Full:
                self._gone(size)
            else:
                return
        self._refuse_busy(broker, delivery)

    def _gone(self, size: int) -> None:
        with self._lock:
            self._bytes -= size

    def _refuse_busy(self, broker: Broker, delivery: Delivery) -> None:
        asked = parse_request(self._options.broker.prefix, delivery.incoming)
        if asked.reply_to is None:
            broker.settle(delivery)
            return
        reason = f"{self._waiting.qsize()} requests wait already; try again in a moment"
        broker.answer_at_once(delivery, asked.reply_to, error_payload(asked.id, 429, reason, again=True))

    def _work(self) -> None:
        """One asker: its own connection to the inference server, requests one after another, for ever."""
        with Connection(self._options.server, _ANSWER_S) as connection:
            while (item := self._waiting.get()) is not None:
                broker, delivery = item
                try:
                    self._handle(connection, broker, delivery)
                except DoorError as error:
                    broker.give_up(str(error))  # not acknowledged, so it is delivered again over the next connection
                except Exception:
                    logger.exception("a request failed")
                    broker.settle(delivery)  # a defect of ours: delivered again it would fail again, for ever
                finally:
                    self._gone(len(delivery.incoming.payload))

    def _handle(self, connection: Connection, broker: Broker, delivery: Delivery) -> None:
        asked = parse_request(self._options.broker.prefix, delivery.incoming)
        match asked:
            case Asked(reply_to=reply_to):
                broker.answer(delivery, reply_to, self._answer(connection, asked))
            case Refused(reply_to=None):
                self._tell(asked.reason)
                broker.settle(delivery)
            case Refused(reply_to=ReplyTo() as reply_to):
                broker.answer(delivery, reply_to, error_payload(asked.id, 400, asked.reason))

    def _answer(self, connection: Connection, asked: Asked) -> bytes:
        if (known := self._answers.get(asked.key)) is not None:
            return known
        try:
            reply = connection.infer(asked.model, None, asked.body)
            if reply.status == 200:
                payload = answer_payload(asked, reply.body)
                self._answers.put(asked.key, payload)
                return payload
        except UnreachableError as error:
            return error_payload(asked.id, 503, str(error), again=True)
        return error_payload(asked.id, reply.status, reply.reason, again=reply.status in AGAIN)

    def _tell(self, reason: str) -> None:
        """Requests nobody can be told about go to the log, but a machine that sends a thousand must not fill it."""
        with self._lock:
            self._untold += 1
            now = time.monotonic()
            if now - self._told_at < _TELL_EVERY_S:
                return
            count, self._untold, self._told_at = self._untold, 0, now
        logger.warning("%d requests without an answer, the last: %s", count, reason)


def run(options: MqttOptions, stop: Stop) -> None:
    """Bridge until told to stop."""
    Bridge(options).run(stop)


if __name__ == "__main__":
    live(MqttOptions, run)
