"""The local API over real HTTP: who may do what, what is refused and why, what comes back."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from landreeve.release.manifest import Column
from landreeve_agent.config import StateFolder
from landreeve_agent.console.access import COOKIE, Codes, Sessions, doors, ensure_tokens
from landreeve_agent.console.api import Done, LocalApi, NotDone, Started, TrainBody
from landreeve_agent.console.server import ConsoleServer, build, listen
from landreeve_agent.console.status import Active, HubView, StatusSource, UpdateView
from landreeve_agent.intake.definitions import Definitions
from landreeve_agent.intake.intake import Intake
from landreeve_agent.store.database import Database
from landreeve_agent.telemetry.machine import MachineProbe
from landreeve_agent.telemetry.recent import Recent
from landreeve_models.definition import Definition

from tests.agent.test_agent_cli import cli

DEFINITION = Definition(name="m", purpose="a test", label="late", columns=(Column(name="x", kind="number"),))
SAMPLE = {"id": "a", "at": "2026-01-01T00:00:00Z", "row": {"x": 1.5}}


class Floor:
    """The rooms below the API that this test does not need, kept as plain records of what was asked."""

    def __init__(self) -> None:
        self.audit_trail: list[tuple[str, str, str]] = []
        self.trainings: list[TrainBody] = []

    async def train(self, request: TrainBody, actor: str) -> Started | NotDone:
        self.trainings.append(request)
        return Started("run-1") if len(self.trainings) == 1 else NotDone("a training runs already")

    async def roll_back(self, model: str, actor: str) -> Done | NotDone:
        return NotDone(f"{model} has no earlier version")

    async def audit(self, actor: str, action: str, subject: str, data: Mapping[str, Any]) -> None:
        self.audit_trail.append((actor, action, subject))

    async def worker(self) -> None:
        return None

    async def hardware(self) -> dict[str, str]:
        return {"cpu": "a processor"}


@dataclass
class House:
    url: str
    api: LocalApi
    floor: Floor
    token: dict[str, str]
    app_token: dict[str, str]
    client: httpx2.AsyncClient


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = Database(tmp_path / "agent.db")
    definitions = Definitions(tmp_path)
    definitions.put(DEFINITION)
    floor = Floor()
    listener = listen("127.0.0.1", 0)
    source = StatusSource(
        site=lambda: "Test", device=str, version="0", serving="", database=database, definitions=definitions,
        recent=Recent(), machine=MachineProbe(tmp_path), worker=floor.worker,
        hub=lambda waiting: HubView(waiting=waiting),
        active=lambda: {"m": Active("1", "r")}, updates=dict, troubles=tuple,
    )  # fmt: skip
    sessions = Sessions(tmp_path / "sessions.json", lambda: 1000.0, 3600)
    api = LocalApi(
        source=source, database=database, definitions=definitions, intake=Intake(database, definitions),
        codes=Codes(lambda: 0.0, 600), sessions=sessions, hardware=floor.hardware, train=floor.train,
        roll_back=floor.roll_back, audit=floor.audit, max_rows=3, session_s=3600,
    )  # fmt: skip
    tokens = ensure_tokens(tmp_path)
    app, stop = build(api, doors("127.0.0.1", ["box.lan"]), tokens, sessions, "0")
    server = ConsoleServer(app, listener, stop)
    task = asyncio.create_task(server.run())
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    bearer = {"Authorization": f"Bearer {tokens.api}"}
    async with httpx2.AsyncClient(base_url=url, timeout=10) as client:
        yield House(url, api, floor, bearer, {"Authorization": f"Bearer {tokens.app}"}, client)
    server.stop()
    await task
    listener.close()
    database.close()


async def test_every_route_but_signing_in_refuses_a_stranger(house: House) -> None:
    for _, method, path, _, _ in house.api._routes():
        if path != "/sessions":
            answer = await house.client.request(method, "/api/v1" + path.replace("{model}", "m").replace("{run}", "r"))
            assert answer.status_code == 401, path
            assert answer.headers["content-type"] == "application/problem+json"


async def test_the_application_token_brings_data_and_nothing_else(house: House) -> None:
    good = await house.client.post("/api/v1/models/m/samples", json={"samples": [SAMPLE]}, headers=house.app_token)
    assert good.json() == {"accepted": 1, "repeated": 0}
    for method, path in (("GET", "/status"), ("POST", "/models"), ("POST", "/codes"), ("GET", "/log")):
        refused = await house.client.request(method, "/api/v1" + path, headers=house.app_token)
        assert refused.status_code == 403, path


async def test_a_bad_row_names_index_and_field(house: House) -> None:
    bad = {"samples": [SAMPLE, {"id": "b", "at": "2026-01-01T00:00:00Z", "row": {"x": "one"}}]}
    answer = await house.client.post("/api/v1/models/m/samples", json=bad, headers=house.app_token)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"index": 1, "field": "row.x", "reason": "expected a number, got str 'one'"},
    ]
    assert "Nothing was stored" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/v1/models/other/labels", b'{"labels": []}', 404, "known: m"),
        ("/api/v1/models/m/samples", b'{"samples": [{"id": "a"}]}', 422, "missing required field `at`"),
        ("/api/v1/models/m/samples", b"\xff\xfe", 422, "malformed"),
        ("/api/v1/models/m/samples", json.dumps({"samples": [SAMPLE] * 4}).encode(), 413, "at most 3"),
        ("/api/v1/training", b'{"model": "m", "first": "x", "last": "y"}', 422, "first"),
        ("/api/v1/models/m/rollback", b"", 409, "no earlier version"),
        ("/api/v1/models", b'{"name": "../m", "purpose": "", "label": "y", "columns": []}', 422, "identifier"),
    ],
)
async def test_bad_requests_say_what_is_wrong(house: House, path: str, body: bytes, status: int, words: str) -> None:
    answer = await house.client.post(path, content=body, headers=house.token)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


async def test_a_code_signs_one_browser_in_once(house: House) -> None:
    code = (await house.client.post("/api/v1/codes", headers=house.token)).json()["code"]
    answer = await house.client.post("/api/v1/sessions", json={"code": code.lower().replace("-", " ")})
    assert answer.status_code == 201
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert (await house.client.get("/api/v1/status")).status_code == 200
    house.client.cookies.clear()
    assert (await house.client.post("/api/v1/sessions", json={"code": code})).status_code == 401


async def test_signing_out_ends_the_session(house: House) -> None:
    secret = house.api.sessions.open()
    cookie = {"Cookie": f"{COOKIE}={secret}", "Origin": house.url}
    assert (await house.client.get("/api/v1/status", headers=cookie)).status_code == 200
    assert (await house.client.delete("/api/v1/sessions", headers=cookie)).status_code == 204
    assert (await house.client.get("/api/v1/status", headers=cookie)).status_code == 401


async def test_guessing_codes_is_slowed_even_for_the_right_one(house: House) -> None:
    code = house.api.codes.fresh()
    statuses = [
        (await house.client.post("/api/v1/sessions", json={"code": f"AAAA-AAA{n}"})).status_code for n in range(11)
    ]
    assert statuses == [401] * 10 + [429]
    last = await house.client.post("/api/v1/sessions", json={"code": code})
    assert last.status_code == 429
    assert "retry-after" in last.headers


async def test_a_foreign_page_cannot_post_with_the_browsers_cookie(house: House) -> None:
    cookie = {"Cookie": f"{COOKIE}={house.api.sessions.open()}"}
    for origin in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {}):
        answer = await house.client.post("/api/v1/codes", headers={**cookie, **origin})
        assert answer.status_code == 403
    own = await house.client.post("/api/v1/codes", headers={**cookie, "Origin": house.url})
    assert own.status_code == 201


async def test_a_rebound_host_name_is_turned_away(house: House) -> None:
    assert (await house.client.get("/", headers={"Host": "evil.example"})).status_code == 421
    known = await house.client.get("/api/v1/status", headers={"Host": "box.lan:1234", **house.token})
    assert known.status_code == 200


async def test_a_page_shows_nothing_to_a_stranger(house: House) -> None:
    answer = await house.client.get("/")
    assert answer.status_code in {302, 303, 307}
    assert answer.headers["location"].startswith("/login")


async def test_the_stream_sends_the_status_and_ends_with_the_server(house: House) -> None:
    async with house.client.stream("GET", "/api/v1/events", headers=house.token) as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: status"
        document = json.loads((await anext(lines)).removeprefix("data: "))
        assert document["site"] == "Test"
        house.api.closing.set()
        assert [line async for line in lines if line.startswith("data")] == []


async def test_training_and_definitions_are_written_to_the_audit_trail(house: House) -> None:
    body = {"model": "m", "first": "2026-01-01T00:00:00Z", "last": "2026-02-01T00:00:00Z"}
    assert (await house.client.post("/api/v1/training", json=body, headers=house.token)).json() == {"id": "run-1"}
    assert (await house.client.post("/api/v1/training", json=body, headers=house.token)).status_code == 409
    definition = {"name": "n", "purpose": "", "label": "y", "columns": [{"name": "x", "kind": "number"}]}
    assert (await house.client.post("/api/v1/models", json=definition, headers=house.token)).status_code == 201
    assert house.floor.audit_trail == [("admin", "training.start", "m"), ("admin", "model.define", "n")]
    models = (await house.client.get("/api/v1/models", headers=house.token)).json()["items"]
    assert [model["name"] for model in models] == ["m", "n"]


def test_a_busy_port_gives_the_next_free_one() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = listen("127.0.0.1", port)
    assert port < second.getsockname()[1] < port + 50
    first.close()
    second.close()


def test_tokens_and_sessions_are_private_files(tmp_path: Path) -> None:
    tokens = ensure_tokens(tmp_path)
    assert ensure_tokens(tmp_path) == tokens
    sessions = Sessions(tmp_path / "sessions.json", lambda: 0.0, 60)
    secret = sessions.open()
    assert secret not in (tmp_path / "sessions.json").read_text()
    assert Sessions(tmp_path / "sessions.json", lambda: 59.0, 60).holds(secret)
    assert not Sessions(tmp_path / "sessions.json", lambda: 61.0, 60).holds(secret)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


async def test_split_traffic_is_told_by_api_and_page_with_the_outcome_of_each_version(house: House) -> None:
    rows = [
        {"model": "m", "id": f"{arm}{n}", "at": "", "row": "{}", "p": 0.5, "captured": "2026-01-01T00:00:00.000Z",
         "version": version, "release": version * 64, "unit": f"{n:016x}", "arm": arm,
         "against": other * 64, "share": 0.5}
        for arm, version, other in (("new", "2", "1"), ("good", "1", "2")) for n in range(8)
    ]  # fmt: skip
    labels = [
        {"model": "m", "id": row["id"], "label": float(row["arm"] == "new"), "at": "", "received": ""} for row in rows
    ]

    def write(tables: Any) -> None:
        tables["samples"].insert_all(rows)
        tables["labels"].insert_all(labels[:-1])

    await house.api.database.write(write)
    (split,) = (await house.client.get("/api/v1/models/m/splits", headers=house.token)).json()["items"]
    assert [(arm["version"], arm["keys"], arm["labelled_keys"], arm["outcome"]) for arm in split["arms"]] == [
        ("2", 8, 8, 1.0), ("1", 8, 7, 0.0),
    ]  # fmt: skip
    assert split["difference"] == 1.0
    await house.client.post("/api/v1/sessions", json={"code": house.api.codes.fresh()})
    page = await house.client.get("/models/m")
    assert page.status_code == 200
    assert "Two versions side by side" in page.text
    assert "+1" in page.text


async def test_by_when_a_probation_is_decided_is_said_by_page_and_command(house: House, tmp_path: Path) -> None:
    update = UpdateView("PROBATION", "On probation.", (), "2", "1", "2026-11-30T09:05:00.000000Z")
    house.api.source.updates = lambda: {"m": update}
    (model,) = (await house.client.get("/api/v1/models", headers=house.token)).json()["items"]
    assert model["update"]["until"] == "2026-11-30T09:05:00.000000Z"
    await house.client.post("/api/v1/sessions", json={"code": house.api.codes.fresh()})
    page = (await house.client.get("/updates")).text
    assert "Decided by <bdi>2026-11-30 09:05</bdi> UTC at the latest" in page
    house.client.cookies.set("lang", "ar")
    arabic = (await house.client.get("/updates")).text
    assert ("at the latest" in arabic, "يُحسم في موعد أقصاه" in arabic) == (False, True)
    state = StateFolder(tmp_path / "state")
    state.prepare()
    state.ports.write_text(json.dumps({"host": "127.0.0.1", "console": int(house.url.rpartition(":")[2])}))
    (state.tokens / "api").write_text(house.token["Authorization"].removeprefix("Bearer "))
    listed = await asyncio.to_thread(cli, state.root, "update", "list")
    assert "PROBATION. On probation. Decided by 2026-11-30 09:05 UTC at the latest." in " ".join(listed.stderr.split())
