"""``Idempotency-Key``: a POST repeated with the same key gets the first answer and does nothing again.

Answers are kept in memory for a day (bounded), so a restart forgets them; what must never happen twice is also
guarded where it happens (one rollout of a model at a time, releases by digest).
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEEP_S = 86_400.0
MAX_ANSWERS = 2_000
MAX_KEPT_BYTES = 256 * 1024
# A sign-in's answer is a secret of that moment.
_NEVER = frozenset({"/api/v1/sessions", "/api/v1/tokens", "/api/v1/setup-codes", "/api/v1/enrolment-tokens"})


@dataclass(slots=True)
class _Answer:
    at_s: float
    messages: list[Message] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Idempotency:
    """ASGI middleware. Only answers of 200 to 299 are kept: what failed may be tried again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _name(scope)
        if name is None:
            await self._app(scope, receive, send)
            return
        held = self._held(name)
        if held is not None:
            await held.done.wait()
            if held.messages:
                for message in held.messages:
                    await send(message)
                return
        await self._answer(name, scope, receive, send)

    def _held(self, name: str) -> _Answer | None:
        now = time.monotonic()
        while self._answers and (
            len(self._answers) > MAX_ANSWERS or next(iter(self._answers.values())).at_s < now - KEEP_S
        ):
            self._answers.popitem(last=False)
        return self._answers.get(name)

    async def _answer(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers[name] = _Answer(time.monotonic())
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)
            await send(message)

        try:
            await self._app(scope, receive, keep)
            if _fit(messages):
                answer.messages = messages
            else:
                self._answers.pop(name, None)
        except BaseException:
            self._answers.pop(name, None)
            raise
        finally:
            answer.done.set()


def _fit(messages: list[Message]) -> bool:
    size = sum(len(m.get("body", b"")) for m in messages)
    return bool(messages) and 200 <= messages[0].get("status", 500) < 300 and size <= MAX_KEPT_BYTES


def _name(scope: Scope) -> str | None:
    """The key bound to who asks and what for; None where nothing is to be kept."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in _NEVER:
        return None
    headers = {k: v for k, v in scope["headers"] if k in {b"idempotency-key", b"authorization", b"cookie"}}
    key = headers.get(b"idempotency-key")
    if not key:
        return None
    parts = (key, headers.get(b"authorization", b""), headers.get(b"cookie", b""), scope["path"].encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
