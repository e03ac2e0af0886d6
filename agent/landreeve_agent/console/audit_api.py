"""The audit log over the local API: list, standing, verify, export, trust."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.responses import FileResponse
from landreeve.audit.entry import Tampered
from landreeve.audit.finding import Wanted
from starlette.background import BackgroundTask

from landreeve_agent.audit.log import SiteLog
from landreeve_agent.audit.witness import Mutual
from landreeve_agent.console.access import Actor
from landreeve_agent.console.problems import Problem

Route = tuple[str, str, Callable[..., Awaitable[Response]], str]


@dataclass(frozen=True)
class AuditApi:
    """Handlers over the log; ``work`` is a folder for archives under way."""

    log: SiteLog
    mutual: Mutual
    work: Path

    def __post_init__(self) -> None:
        for left in self.work.glob("audit-*.zip"):  # of a life that was killed while it answered
            left.unlink(missing_ok=True)

    def routes(self) -> tuple[Route, ...]:
        """(method, path, handler, summary); for administrators."""
        return (
            ("GET", "/audit", self.listed, "Who did what on this box, newest first"),
            ("GET", "/audit/status", self.standing, "How the log is sealed and witnessed"),
            ("GET", "/audit/verify", self.verify, "Whether the log is as it was written"),
            ("GET", "/audit/export", self.export, "The log as a zip that verifies offline"),
            ("POST", "/audit/trust", self.trust, "Begin anew with the hub's audit log"),
        )

    async def listed(  # noqa: PLR0917  a query string has no order
        self,
        before: int = 0,
        limit: int = 100,
        actor: str = "",
        action: str = "",
        object: str = "",  # noqa: A002  as entries name it
        decision: str = "",
        since: str = "",
        until: str = "",
    ) -> Response:
        most = max(1, min(limit, 1000))
        wanted = Wanted(actor=actor, action=action, object=object, decision=decision, since=since, until=until)
        try:
            found = await self.log.listed(before, most, wanted)
        except ValueError as error:
            raise Problem(422, "Not acceptable as it is", str(error)) from error
        return _json({"items": found, "next": found[-1].seq if len(found) == most else None})

    async def standing(self) -> Response:
        key = {"origin": self.log.keys.origin, "key": self.log.keys.key.text()}
        return _json({**msgspec.structs.asdict(await self.mutual.standing()), **key})

    async def verify(self) -> Response:
        answer = await self.log.verify()
        return _json({"whole": not isinstance(answer, Tampered), **msgspec.structs.asdict(answer)})

    async def export(self, request: Request) -> Response:
        path = self.work / f"audit-{secrets.token_hex(8)}.zip"
        await self.log.export(path, _actor(request).name)
        return FileResponse(path, filename="audit.zip", background=BackgroundTask(path.unlink))

    async def trust(self, request: Request) -> Response:
        await self.mutual.trust(_actor(request).name)
        return _json(await self.mutual.standing())


def _actor(request: Request) -> Actor:
    actor: Actor = request.scope["state"]["actor"]
    return actor


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
