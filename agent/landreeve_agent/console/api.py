"""The local API, ``/api/v1``: what the console's pages, the command line and the site's applications use."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from landreeve_models.definition import BadDefinitionError, Definition, check_definition

from landreeve_agent.console import reading
from landreeve_agent.console.access import COOKIE, Actor, Codes, Scope, Sessions, TooManyTries
from landreeve_agent.console.audit_api import AuditApi
from landreeve_agent.console.guard import cookie_of
from landreeve_agent.console.problems import Problem, problem_response
from landreeve_agent.console.status import ModelView, StatusSource
from landreeve_agent.intake.definitions import Definitions
from landreeve_agent.intake.event_time import BadTimeError, event_time
from landreeve_agent.intake.intake import Accepted, Intake, Refused, UnknownModel
from landreeve_agent.intake.rows import LabelBatch, SampleBatch
from landreeve_agent.store.database import Database
from landreeve_agent.update import arms

MAX_BODY_BYTES = 32 * 1024 * 1024
T = TypeVar("T")


class Rule(StrEnum):
    """Who may use a route: anybody, programs that bring data (and administrators), administrators."""

    OPEN = "open"
    INTAKE = "intake"
    FULL = "full"


class RollBack(Protocol):
    """Return a model to its last good version; the sentence says what happened, or why it was refused."""

    async def __call__(self, model: str, actor: str) -> "Done | NotDone": ...


class Train(Protocol):
    """Ask for a training; answers with the run's id, or why not."""

    async def __call__(self, request: "TrainBody", actor: str) -> "Started | NotDone": ...


class AuditTrail(Protocol):
    """Write down who did what, for the site's log and the hub."""

    async def __call__(self, actor: str, action: str, subject: str, data: Mapping[str, Any]) -> None: ...


class TrainBody(msgspec.Struct, frozen=True, kw_only=True):
    """A training by hand: event times from ``first`` up to ``last``."""

    model: str
    first: str
    last: str
    reason: str = ""


class CodeBody(msgspec.Struct, frozen=True):
    code: str


@dataclass(frozen=True)
class Done:
    """It was done; the sentence says what."""

    sentence: str


@dataclass(frozen=True)
class NotDone:
    """It was refused; the sentence says why."""

    sentence: str


@dataclass(frozen=True)
class Started:
    """Long work has begun under this id."""

    id: str


@dataclass
class LocalApi:
    """The API over its rooms. ``closing`` ends open streams: a server waits for them."""

    source: StatusSource
    database: Database
    definitions: Definitions
    intake: Intake
    codes: Codes
    sessions: Sessions
    hardware: Callable[[], Awaitable[Any]]
    train: Train
    roll_back: RollBack
    audit: AuditTrail
    max_rows: int
    session_s: float
    audits: AuditApi | None = None
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def install(self, app: FastAPI) -> None:
        """Add the routes and the way refusals are written."""
        app.include_router(self._router())
        app.add_exception_handler(Problem, _on_problem)

    def _router(self) -> APIRouter:
        router = APIRouter(prefix="/api/v1")
        audits = self.audits.routes() if self.audits else ()
        for rule, method, path, handler, summary in (*self._routes(), *((Rule.FULL, *route) for route in audits)):
            admit = [Depends(_admit(rule))]
            router.add_api_route(
                path, handler, methods=[method], summary=summary, response_model=None, dependencies=admit
            )
        return router

    def _routes(self) -> tuple[tuple[Rule, str, str, Callable[..., Any], str], ...]:
        return (
            (Rule.OPEN, "POST", "/sessions", self.sign_in, "Sign a browser in with a one-time code"),
            (Rule.OPEN, "DELETE", "/sessions", self.sign_out, "Sign out"),
            (Rule.FULL, "POST", "/codes", self.fresh_code, "A fresh one-time code"),
            (Rule.FULL, "GET", "/status", self.status, "What the box is doing"),
            (Rule.FULL, "GET", "/events", self.events, "The status as server-sent events"),
            (Rule.FULL, "GET", "/hardware", self.show_hardware, "What is in the box and what works"),
            (Rule.FULL, "GET", "/models", self.list_models, "The models of this box"),
            (Rule.FULL, "POST", "/models", self.add_model, "Add or change a model's definition"),
            (Rule.FULL, "GET", "/models/{model}", self.show_model, "One model with its definition and history"),
            (Rule.FULL, "GET", "/models/{model}/splits", self.show_splits, "What came of each arm of a split traffic"),
            (Rule.FULL, "POST", "/models/{model}/rollback", self.roll_back_model, "Return to the last good version"),
            (Rule.INTAKE, "POST", "/models/{model}/samples", self.add_samples, "Bring in samples"),
            (Rule.INTAKE, "POST", "/models/{model}/labels", self.add_labels, "Bring in labels"),
            (Rule.FULL, "GET", "/training", self.list_training, "Training runs, newest first"),
            (Rule.FULL, "POST", "/training", self.start_training, "Start a training"),
            (Rule.FULL, "GET", "/training/{run}", self.show_training, "One training run"),
            (Rule.FULL, "GET", "/drift/{model}", self.show_drift, "Closed windows of a model, newest first"),
            (Rule.FULL, "GET", "/updates", self.list_updates, "Transitions of updates, newest first"),
            (Rule.FULL, "GET", "/log", self.show_log, "What happened, newest first"),
        )

    async def sign_in(self, request: Request) -> Response:
        body = await read_body(request, CodeBody)
        answer = self.codes.redeem(body.code)
        if isinstance(answer, TooManyTries):
            wait = {"Retry-After": f"{answer.retry_after_s:.0f}"}
            raise Problem(429, "Too many tries", "Wait half a minute before the next try.", headers=wait)
        if not answer:
            await self.audit("console", "session.refuse", "console", {})
            raise Problem(401, "Wrong code", "This code is wrong, used or expired. A fresh one: landreeve code")
        response = _json({"signed_in": True}, 201)
        response.set_cookie(
            COOKIE, self.sessions.open(), max_age=int(self.session_s), httponly=True, samesite="strict", path="/"
        )
        await self.audit("console", "session.open", "console", {})
        return response

    async def sign_out(self, request: Request) -> Response:
        secret = cookie_of(request.headers.get("cookie", ""))
        if secret:
            self.sessions.close(secret)
            await self.audit("console", "session.close", "console", {})
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, path="/")
        return response

    async def fresh_code(self, request: Request) -> Response:
        await self.audit(_actor(request).name, "code.make", "console", {})
        return _json({"code": self.codes.fresh(), "valid_s": self.codes.valid_s}, 201)

    async def status(self) -> Response:
        return _json(await self.source.status())

    async def events(self) -> Response:
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def show_hardware(self) -> Response:
        return _json(await self.hardware())

    async def list_models(self) -> Response:
        return _json({"items": (await self.source.status()).models})

    async def add_model(self, request: Request) -> Response:
        try:
            definition = check_definition(await read_body(request, Definition))
        except BadDefinitionError as error:
            raise Problem(422, "Bad definition", str(error)) from error
        self.definitions.put(definition)
        await self.audit(_actor(request).name, "model.define", definition.name, {})
        return _json({"name": definition.name, "columns": len(definition.columns)}, 201)

    async def show_model(self, model: str) -> Response:
        view = await self._view(model)
        return _json(
            {
                **msgspec.structs.asdict(view),
                "definition": self.definitions.get(model),
                "history": await self.database.read(lambda tables: reading.transitions(tables, model, 50, None)),
                "plan": await self.database.read(lambda tables: reading.plan(tables, model, view.release)),
            }
        )

    async def show_splits(self, model: str) -> Response:
        await self._view(model)
        return _json({"items": await self.database.read(lambda tables: arms.splits(tables, model))})

    async def roll_back_model(self, model: str, request: Request) -> Response:
        await self._view(model)
        actor = _actor(request).name
        answer = await self.roll_back(model, actor)
        if isinstance(answer, NotDone):
            raise Problem(409, "Not possible", answer.sentence)
        return _json({"model": model, "sentence": answer.sentence})

    async def add_samples(self, model: str, request: Request) -> Response:
        batch = await read_body(request, SampleBatch)
        self._check_size(len(batch.samples), "samples")
        return _intake_answer(model, await self.intake.samples(model, batch.samples, self.now()))

    async def add_labels(self, model: str, request: Request) -> Response:
        batch = await read_body(request, LabelBatch)
        self._check_size(len(batch.labels), "labels")
        return _intake_answer(model, await self.intake.labels(model, batch.labels, self.now()))

    async def list_training(self) -> Response:
        return _json({"items": await self.database.read(lambda tables: reading.runs(tables, 50))})

    async def start_training(self, request: Request) -> Response:
        body = await read_body(request, TrainBody)
        if body.model not in self.definitions:
            raise _unknown(body.model, tuple(self.definitions))
        for name, text in (("first", body.first), ("last", body.last)):
            try:
                event_time(text)
            except BadTimeError as error:
                raise Problem(422, "Bad time", f"{name}: {error}", errors=[{"field": name}]) from error
        actor = _actor(request).name
        answer = await self.train(body, actor)
        if isinstance(answer, NotDone):
            raise Problem(409, "Not possible", answer.sentence)
        await self.audit(actor, "training.start", body.model, {"run": answer.id})
        return _json({"id": answer.id}, 202)

    async def show_training(self, run: str) -> Response:
        found = await self.database.read(lambda tables: reading.run(tables, run))
        if found is None:
            raise Problem(404, "No such run", f"There is no training run {run[:80]!r}.")
        return _json(found)

    async def show_drift(self, model: str, limit: int = 60) -> Response:
        if model not in self.definitions:
            await self._view(model)
        return _json({"items": await self.database.read(lambda tables: reading.windows(tables, model, limit))})

    async def list_updates(self, limit: int = 200, before: int | None = None) -> Response:
        rows = await self.database.read(lambda tables: reading.transitions(tables, None, limit, before))
        return _json({"transitions": rows})

    async def show_log(self, limit: int = 200, before: int | None = None) -> Response:
        return _json({"items": await self.database.read(lambda tables: reading.events(tables, limit, before))})

    async def _view(self, model: str) -> ModelView:
        models = (await self.source.status()).models
        for view in models:
            if view.name == model:
                return view
        raise _unknown(model, tuple(view.name for view in models))

    def _check_size(self, count: int, what: str) -> None:
        if count > self.max_rows:
            raise Problem(413, "Too many rows", f"{count} {what} in one request, at most {self.max_rows} are taken.")

    async def _stream(self) -> AsyncIterator[bytes]:
        sent: bytes | None = None
        while not self.closing.is_set():
            document = msgspec.json.encode(await self.source.status())
            if document != sent:
                yield b"event: status\ndata: " + document + b"\n\n"
                sent = document
            try:
                async with asyncio.timeout(1.0):
                    await self.closing.wait()
            except TimeoutError:
                continue


def _admit(rule: Rule) -> Callable[[Request], Awaitable[None]]:
    async def admit(request: Request) -> None:
        actor: Actor | None = request.scope.get("state", {}).get("actor")
        if rule is Rule.OPEN:
            return
        if actor is None:
            raise Problem(401, "Not signed in", "Send a bearer token, or sign in with a code from: landreeve code")
        if rule is Rule.FULL and actor.scope is not Scope.FULL:
            raise Problem(403, "Not allowed", "This token brings in samples and labels only; use the api token.")

    return admit


async def read_body(request: Request, kind: type[T]) -> T:
    """The request's JSON as that type; a `Problem` naming the field that is wrong."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise Problem(413, "Too large", f"The body is above {MAX_BODY_BYTES} bytes: send it in parts.")
        chunks.append(chunk)
    try:
        return msgspec.json.decode(b"".join(chunks), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, "Bad request", str(error)) from error
    except RecursionError as error:
        raise Problem(422, "Bad request", "The body is nested too deeply.") from error


async def _on_problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, Problem):
        raise error
    return problem_response(error)


def _intake_answer(model: str, answer: Accepted | Refused | UnknownModel) -> Response:
    match answer:
        case Accepted(accepted, repeated):
            return _json({"accepted": accepted, "repeated": repeated})
        case UnknownModel(known):
            raise _unknown(model, known)
        case Refused(faults):
            errors = [{"index": f.index, "field": f.field, "reason": f.reason} for f in faults]
            raise Problem(422, "Bad rows", f"Nothing was stored: {faults[0]}", errors=errors)


def _unknown(model: str, known: tuple[str, ...]) -> Problem:
    there = ", ".join(known) if known else "none yet; add one: landreeve model add FOLDER"
    return Problem(404, "No such model", f"There is no model {model[:80]!r} here; known: {there}")


def _actor(request: Request) -> Actor:
    actor: Actor = request.scope["state"]["actor"]
    return actor


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
