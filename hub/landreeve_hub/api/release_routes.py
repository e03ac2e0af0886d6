"""Models and releases: list, push, pull, approve, withdraw."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from landreeve.release.layout import Packed
from landreeve.release.reference import repository_of
from sqlalchemy import Connection, select

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.access.separation import Denied, judge
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.exchange.archive import read_archive, write_archive
from landreeve_hub.exchange.image_layout import write_layout
from landreeve_hub.learning import known_plans
from landreeve_hub.registry.bill import BILL_TYPE
from landreeve_hub.rollout.runner import review_later
from landreeve_hub.store import tables

MAX_ARCHIVE_BYTES = 1024**3
CARD_FILE = "card.md"


class Approval(msgspec.Struct, forbid_unknown_fields=True):
    """``emergency``: the reason to approve one's own proposal, admins only."""

    emergency: str = ""


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store = APIRouter(), services.store

    @routes.get("/models")
    async def models(_: Annotated[Person, may(Permission.VIEW)]) -> list[dict[str, Any]]:
        """Every model with its releases, newest first."""
        return await store.read(_models)

    @routes.get("/releases")
    async def releases(
        _: Annotated[Person, may(Permission.VIEW)], model: str = "", state: str = ""
    ) -> list[dict[str, Any]]:
        """Releases, newest first; ``state=draft`` are those awaiting approval."""
        rows = await store.read(lambda c: release_rows(c, model=model, state=state))
        return await _with_waiting(services, rows)

    @routes.get("/releases/{digest}")
    async def release(digest: str, _: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """One release by digest (or its beginning), ``MODEL:VERSION``, or ``MODEL`` for the newest approved one."""
        shown = await store.read(lambda c: _shown(c, find(c, digest)))
        return (await _with_waiting(services, [shown]))[0]

    @routes.get("/releases/{digest}/archive")
    async def archive(
        digest: str, _: Annotated[Person, may(Permission.VIEW)], form: Literal["folder", "oci"] = "folder"
    ) -> Response:
        """The whole release as a tar of its folder, or with ``form=oci`` of an OCI image layout."""
        row = await store.read(lambda c: find(c, digest))
        packed = await asyncio.to_thread(services.releases.pull, row["digest"])
        if form == "oci":
            data = await asyncio.to_thread(write_layout, packed, row["version"])
        else:
            data = await asyncio.to_thread(write_archive, packed)
        name = f"{row['model']}-{row['version']}.tar"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type="application/x-tar", headers=headers)

    @routes.get("/plans")
    async def plans(
        _: Annotated[Person, may(Permission.VIEW)], release: str = "", model: str = ""
    ) -> list[dict[str, Any]]:
        """For each release and class of boxes: the plan that won, who agrees, and what each box tried; newest first.

        ``release`` is a digest, the beginning of one, or ``MODEL@VERSION``."""
        return await store.read(lambda c: plan_rows(c, release, model))

    _papers(routes, services)
    _change(routes, services)
    return routes


def _papers(routes: APIRouter, services: Services) -> None:
    """What people read of a release."""
    store = services.store

    @routes.get("/releases/{digest}/bom")
    async def bom(digest: str, _: Annotated[Person, may(Permission.VIEW)]) -> Response:
        """The bill of materials that was made when the release was approved: CycloneDX 1.7 as JSON."""
        row = await store.read(lambda c: find(c, digest))
        return Response(await services.releases.bill(row["digest"]), media_type=BILL_TYPE)

    @routes.get("/releases/{digest}/card")
    async def card(digest: str, _: Annotated[Person, may(Permission.VIEW)]) -> Response:
        """The release's card, as Markdown."""
        row = await store.read(lambda c: find(c, digest))
        packed = await asyncio.to_thread(services.releases.pull, row["digest"])
        if packed.manifest.layer(CARD_FILE) is None:
            raise Problem(404, f"{row['model']} {row['version']}: has no {CARD_FILE}")
        return Response(packed.file(CARD_FILE), media_type="text/markdown; charset=utf-8")


def _change(routes: APIRouter, services: Services) -> None:
    """Push, approve, withdraw."""
    store = services.store

    @routes.post("/releases", status_code=201)
    async def push(
        request: Request, person: Annotated[Person, may(Permission.PROPOSE)], tag: str = ""
    ) -> dict[str, str]:
        """A tar (``application/x-tar``) of a release folder or of an OCI image layout, of which ``tag`` names the
        manifest when it holds several: it becomes a draft awaiting approval."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-tar":
            raise Problem(415, "content-type: send the release folder as application/x-tar")
        with tempfile.TemporaryDirectory(dir=services.work) as folder:
            await _receive(request.stream(), Path(folder) / "upload.tar")
            packed = await asyncio.to_thread(_unpack, Path(folder) / "upload.tar", tag)
        registered = await services.releases.register(packed, person.name, services.clock())
        await services.audit.record(services.clock(), Act(person.name, "release.push", registered.digest))
        services.changes.say("releases")
        return {"digest": registered.digest, "version": registered.version}

    @routes.post("/releases/{digest}/approve")
    async def approve(
        digest: str, request: Request, person: Annotated[Person, may(Permission.APPROVE)]
    ) -> dict[str, Any]:
        """Sign the release; whoever proposed it cannot (`landreeve_hub.access.separation`). Where approvers' own keys
        are needed it is ``awaiting``, and ``waits_for`` says which signatures are missing."""
        asked, now = await read(request, Approval), services.clock()
        row = await store.read(lambda c: find(c, digest))
        verdict = judge(row["created_by"], person.name, person.role, now, asked.emergency)
        if isinstance(verdict, Denied):
            raise Problem(403, verdict.sentence)
        if row["state"] == "quarantined":
            raise Problem(409, f"{row['model']} {row['version']} is quarantined; push a mended release instead")
        await services.releases.approve(row["digest"], person.name, now)

        def note(connection: Connection) -> None:
            data = {"emergency": asked.emergency} if asked.emergency else {}
            services.audit.record_in(connection, now, Act(person.name, "release.approve", row["digest"], data=data))
            subject = f"{row['model']} {row['version']}"
            review_later(connection, services.incidents, verdict, (subject, person.name, asked.emergency), now)

        await store.write(note)
        services.changes.say("releases")
        shown = await store.read(lambda c: _shown(c, find(c, row["digest"])))
        return (await _with_waiting(services, [shown]))[0]

    @routes.post("/releases/{digest}/withdraw")
    async def withdraw(digest: str, person: Annotated[Person, may(Permission.APPROVE)]) -> dict[str, Any]:
        """No new rollout takes this release any more."""
        row, now = await store.read(lambda c: find(c, digest)), services.clock()
        if sites := (await store.read(lambda c: _shown(c, row)))["sites"]:
            raise Problem(409, f"{row['model']} {row['version']} is ordered for {', '.join(sites)}: roll it back first")
        await services.releases.withdraw(row["digest"], person.name, now)
        await services.audit.record(now, Act(person.name, "release.withdraw", row["digest"]))
        services.changes.say("releases")
        return await store.read(lambda c: _shown(c, find(c, row["digest"])))


async def _with_waiting(services: Services, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each release in the state ``awaiting`` waits for, as ``waits_for``."""
    if not any(row["state"] == "awaiting" for row in rows):
        return rows
    waiting = await services.releases.awaiting()
    return [{**row, "waits_for": waiting[row["digest"]]} if row["digest"] in waiting else row for row in rows]


# --- reading ---


def find(connection: Connection, name: str) -> dict[str, Any]:
    """The release of a digest, of the beginning of one (8 or more), of ``MODEL:VERSION`` (or ``MODEL@VERSION``), or
    the newest approved one of ``MODEL``."""
    table = tables.releases
    model, at, version = name.replace("@", ":").partition(":")
    if at:
        query = select(table).where(table.c.model == model, table.c.version == version)
    elif connection.execute(select(table.c.digest).where(table.c.model == name).limit(1)).first():
        newest = (table.c.created.desc(), table.c.digest)
        query = select(table).where(table.c.model == name, table.c.state == "approved").order_by(*newest).limit(1)
    elif len(name) >= 8:
        query = select(table).where(table.c.digest.startswith(name, autoescape=True))
    else:
        raise Problem(
            422, f"release: {text_of(name)} is too short; use 8 or more digits of the digest, MODEL:VERSION or MODEL"
        )
    found = connection.execute(query).mappings().all()
    if len(found) != 1:
        raise Problem(404, f"release: {len(found) or 'none'} found for {text_of(name)}{_known(connection, model)}")
    return dict(found[0])


def _known(connection: Connection, model: str) -> str:
    """What might have been meant: the model's newest versions, else the models there are."""
    table = tables.releases
    newest = select(table.c.version).where(table.c.model == model).order_by(table.c.created.desc()).limit(6)
    if versions := connection.execute(newest).scalars().all():
        return f"; the newest versions of {model} are {', '.join(versions)}"
    models = connection.execute(select(table.c.model).distinct().order_by(table.c.model).limit(6)).scalars().all()
    return f"; models here: {', '.join(models)}" if models else "; the hub has no release yet (model push)"


def plan_rows(connection: Connection, release: str, model: str) -> list[dict[str, Any]]:
    """Known plans by release and box class; a hub restored from a backup may know plans of releases it never had."""
    digest = find(connection, release)["digest"] if "@" in release else release
    return known_plans.listed(connection, release=digest, model=model)


def release_rows(connection: Connection, *, model: str = "", state: str = "") -> list[dict[str, Any]]:
    """Releases without their whole config, newest first."""
    table = tables.releases
    query = select(table).order_by(table.c.created.desc(), table.c.version.desc())
    if model:
        query = query.where(table.c.model == model)
    if state:
        query = query.where(table.c.state == state)
    return [_brief(dict(row)) for row in connection.execute(query).mappings()]


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    config = row.pop("config") or {}
    gates, lineage = config.get("gates") or {}, config.get("lineage") or {}
    told = {"metrics": gates.get("metrics") or {}, "lineage": lineage, "family": config.get("family", "")}
    return {**row, **told, "repository": repository_of(row["model"])}


def _shown(connection: Connection, row: dict[str, Any]) -> dict[str, Any]:
    devices, held = tables.devices, tables.assignments
    joined = select(devices.c.site).join(held, held.c.device == devices.c.id).where(held.c.digest == row["digest"])
    sites = sorted(connection.execute(joined).scalars())
    return {**_brief(dict(row)), "config": row["config"], "sites": sites}


def _models(connection: Connection) -> list[dict[str, Any]]:
    aliases = connection.execute(select(tables.aliases)).all()
    shown = []
    for model in connection.execute(select(tables.models).order_by(tables.models.c.name)):
        named = {row.alias: row.digest for row in aliases if row.model == model.name}
        rows = release_rows(connection, model=model.name)
        shown.append(
            {
                "name": model.name,
                "created": model.created,
                "purpose": model.definition.get("purpose", ""),
                "aliases": named,
                "fleet_version": next((r["version"] for r in rows if r["digest"] == named.get("fleet")), ""),
                "releases": rows,
            }
        )
    return shown


# --- archives ---


async def _receive(chunks: AsyncIterator[bytes], file: Path) -> None:
    size = 0
    with file.open("wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > MAX_ARCHIVE_BYTES:
                raise Problem(413, f"body: a release of at most {MAX_ARCHIVE_BYTES} bytes is accepted")
            await asyncio.to_thread(out.write, chunk)


def _unpack(archive: Path, tag: str) -> Packed:
    with archive.open("rb") as stream:
        return read_archive(stream, tag=tag)
