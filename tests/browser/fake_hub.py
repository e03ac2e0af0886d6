"""A hub's public API with made-up data, so that the fleet console can be looked at without a fleet."""

import random
import time
from typing import Any

import fake_plans
import fake_records
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from landreeve_hub.api import rollout_views
from landreeve_hub.fleet import overview

COOKIE = "hub_session"
CODE = "ABCD-1234"
MANY = (*("healthy",) * 14, "drift", "healthy", "failing", "healthy", "offline", "healthy", "drift")


class FakeHub:
    """Answers as a hub would. Tests change ``fleet`` and see the page follow."""

    def __init__(self, sites: int = 3) -> None:
        self.fleet = fleet(sites)
        self.incidents = incidents()
        self.releases = releases()
        self.waiting: list[dict[str, Any]] = []
        self.open = False
        self.permissions = PERMISSIONS
        self.calls: list[tuple[str, Any]] = []

    def app(self) -> FastAPI:
        app = FastAPI()

        def refuse(request: Request) -> JSONResponse | None:
            if self.open or request.cookies.get(COOKIE) == "yes":
                return None
            return JSONResponse({"title": "Sign in first", "status": 401, "detail": "No session."}, 401)

        @app.post("/api/v1/sessions")
        async def sign_in(request: Request) -> JSONResponse:
            if (await request.json()).get("code") != CODE:
                return JSONResponse({"title": "Wrong code", "detail": "This code is not valid."}, 401)
            answer = JSONResponse({"ok": True})
            answer.set_cookie(COOKIE, "yes", httponly=True, samesite="strict")
            return answer

        @app.get("/api/v1/{path:path}")
        async def read(path: str, request: Request) -> JSONResponse:
            if refusal := refuse(request):
                return refusal
            found = self._answer(path, dict(request.query_params))
            if found is None:
                return JSONResponse({"title": "Not found", "status": 404, "detail": f"There is no {path}."}, 404)
            return JSONResponse(found)

        @app.post("/api/v1/{path:path}")
        async def act(path: str, request: Request) -> JSONResponse:
            if refusal := refuse(request):
                return refusal
            body = await request.json()
            self.calls.append((path, body))
            if path == "enrolment-tokens":
                return JSONResponse(
                    {"token": "lrt1.eyJ1cmwiOiJodHRwczovL2h1Yi5leGFtcGxlOjg0NDMiLCJzaXRlIjoiQk9TIn0"}, 201
                )
            if path == "rollouts":
                return JSONResponse({"id": "r-0001"}, 201)
            return JSONResponse({})

        @app.delete("/api/v1/{path:path}")
        async def drop(path: str, request: Request) -> JSONResponse:
            if refusal := refuse(request):
                return refusal
            self.calls.append((path, "DELETE"))
            return JSONResponse({})

        return app

    def _answer(self, path: str, query: dict[str, str]) -> Any:
        devices = self.fleet["devices"]
        fixed = {
            "me": {"user": "mona", "role": "admin", "permissions": self.permissions},
            "fleet": self.fleet,
            "fleet/summary": summary(self.fleet),
            "fleet/devices": overview.page(
                devices, query.get("filter", ""), query.get("after", ""), int(query.get("limit", "100"))
            ),
            "incidents": [row for row in self.incidents if query.get("state") in {None, row["state"]}],
            "enrolments": self.waiting,
            "models": {"items": [{"name": "flight-delay", "definition": {"purpose": PURPOSE}}]},
            "releases": {"items": self.releases},
            "rollouts": [ended()] if query.get("ended") else [*self.fleet["rollouts"], ended()],
            "delivery": [
                {"device": "d-000000000000", "facts": 18211, "gaps": 0, "duplicates_suppressed": 41, "rejected": 0}
            ],
            "plans": fake_plans.known(at(9), [(row["id"], row["site"]) for row in self.fleet["devices"][:3]]),
            "audit": fake_records.entries(),
            "audit/status": fake_records.standing([(row["id"], row["site"]) for row in self.fleet["devices"]]),
            "audit/verify": fake_records.VERIFIED,
            "keys": fake_records.keys(),
            "keys/changes": fake_records.changes(),
            "keys/approvers": fake_records.people(),
            "drift/flight-delay": drift([row["site"] for row in self.fleet["devices"][:8]]),
        }
        if path in fixed:
            return fixed[path]
        kind, _, name = path.partition("/")
        if kind == "devices":
            found = next((row for row in self.fleet["devices"] if row["id"] == name), None)
            own = {
                "hardware_full": fake_plans.hardware(),
                "plans": [{**fake_plans.report(at(9)), "release": "9f2c" * 16}],
            }
            return found and {**found, **own, "labels": {"region": "ny"}, "events": events(), "metrics": metrics()}
        if kind == "rollouts":
            return next((row for row in [*self.fleet["rollouts"], ended()] if row["id"] == name), None)
        return None


PERMISSIONS = ["view", "propose", "approve", "steer", "roll_back", "enrol", "incidents", "emergency"]
PERMISSIONS += ["audit", "erase", "keys"]
PURPOSE = "The chance that a departure leaves 15 minutes late or more"


def at(minutes_ago: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - minutes_ago * 60))


def fleet(sites: int) -> dict[str, Any]:
    rng = random.Random(5)
    names = ("EWR", "JFK", "LGA") if sites == 3 else tuple(f"DXB-{n:03d}" for n in range(sites))
    devices = [device(name, "healthy" if sites == 3 else rng.choice(MANY), n) for n, name in enumerate(names)]
    counts = {s: sum(row["state"] == s for row in devices) for s in ("healthy", "drift", "failing", "offline")}
    return {
        "counts": {**counts, "total": sites},
        "waiting": [],
        "devices": devices,
        "rollouts": [running(devices)],
        "hub": {"version": "0.1.0", "time": at(0)},
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    devices = found["devices"]
    cells = overview.cells(devices)
    going = [rollout_views.brief(row) for row in found["rollouts"]]
    counted = {"counts": overview.counts(devices), "cells": cells, "cells_left_out": len(devices) - len(cells)}
    return {**counted, "running": overview.running(devices), "rollouts": going, "waiting": [], "hub": found["hub"]}


def device(site: str, state: str, n: int) -> dict[str, Any]:
    kind, text = (("CPU", "4 cores"), ("NPU", "Intel AI Boost"), ("GPU", "RTX A2000"))[n % 3]
    model = {
        "model": "flight-delay",
        "version": "3" if n else "4",
        "release": "9f2c77d01ab39f2c77d01ab3" if n == 0 else "1b77d0a2c34e1b77d0a2c34e",
        "state": "serving",
        "wanted": "npu",
        "used": f"{kind} · onnxruntime int8" if n % 3 != 1 else "NPU · openvino int8",
        "reason": "" if n % 3 == 1 else "No NPU driver is loaded on this box.",
    }
    return {
        "id": f"d-{n:012d}",
        "site": site,
        "state": state,
        "online": state != "offline",
        "last_seen": at(4 if state == "offline" else 0),
        "agent": "0.1.0",
        "hardware": {"kind": kind, "text": text},
        "models": [model],
        "p95_ms": 1.2 + n % 7,
        "psi": 0.03 + (n % 5) / 20,
        "waiting": "",
        "certificate_days": 83.2,
        "predictions": 48211,
        "generation": 12,
    }


def running(devices: list[dict[str, Any]]) -> dict[str, Any]:
    def rows(chosen: list[dict[str, Any]], state: str, sentence: str) -> list[dict[str, str]]:
        return [{"id": r["id"], "site": r["site"], "state": state, "sentence": sentence} for r in chosen]

    third = max(1, len(devices) // 6)
    first, second, rest = devices[:1], devices[1 : 1 + third], devices[1 + third :]
    return {
        "id": "r-0001",
        "model": "flight-delay",
        "version": "4",
        "from_version": "3",
        "state": "RUNNING",
        "waves": [
            wave("Canary", first, 1, 0, rows(first, "committed", "Kept: log loss 0.012 better than v3.")),
            wave("Early", second, 0, len(second), rows(second, "probation", "412 of 500 labelled rows seen.")),
            wave("Everyone", rest, 0, 0, rows(rest, "waiting", "")),
        ],
        "gates": [
            {"name": "failed devices", "limit": 0, "value": 0, "holds": True},
            {"name": "silent devices", "limit": 0, "value": 0, "holds": True},
            {"name": "committed in this wave", "limit": 1, "value": 0, "holds": False},
        ],
        "waiting": ["JFK is answering 5% of the requests with v4"],
        "stages": [
            {"stage": "shadow", "share": 0.0, "devices": 12},
            {"stage": "share", "share": 0.05, "devices": 1},
            {"stage": "share", "share": 0.335, "devices": 3},
            {"stage": "probation", "share": 0.0, "devices": 2},
        ],
        "on_trial": "12 in shadow, 1 at 5% of traffic, 3 at 33.5% of traffic, 2 on probation",
        "cause": "",
        "plan": {"waves": [{"devices": ["EWR"], "name": "Canary"}, {"share": 0.17}, {"rest": True}]},
        "wave": 1,
        "created": at(190),
        "created_by": "mona",
        "approved_by": "omar",
        "log": [
            {"at": at(190), "sentence": "Proposed by mona."},
            {"at": at(180), "sentence": "Approved by omar; wave 1 begins."},
            {"at": at(20), "sentence": "Wave 1 is done; wave 2 begins."},
        ],
    }


def wave(name: str, members: list[Any], committed: int, flying: int, rows: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "total": len(members),
        "committed": committed,
        "failed": 0,
        "in_flight": flying,
        "devices": rows,
    }


def ended() -> dict[str, Any]:
    row = {"id": "d-000000000000", "site": "EWR", "state": "returned", "sentence": "Log loss rose by 0.21; taken back."}
    canary = {"name": "Canary", "total": 1, "committed": 0, "failed": 1, "in_flight": 0, "devices": [row]}
    rest = {"name": "Everyone", "total": 2, "committed": 0, "failed": 0, "in_flight": 0, "devices": []}
    return {
        "id": "r-0000",
        "model": "flight-delay",
        "version": "2",
        "from_version": "1",
        "state": "ROLLED_BACK",
        "waves": [canary, rest],
        "gates": [{"name": "failed devices", "limit": 0, "value": 1, "holds": False}],
        "waiting": [],
        "cause": "too_many_failures",
        "sentence": "EWR took v2 back: on the same rows it did worse than v1 by 0.21 nats.",
        "created": at(9000),
        "created_by": "mona",
        "approved_by": "omar",
        "log": [{"at": at(8900), "sentence": "EWR rolled back; no other site was asked."}],
    }


def releases() -> list[dict[str, Any]]:
    def one(version: str, digest: str, state: str, minutes: int) -> dict[str, Any]:
        lineage = {
            "site": "EWR",
            "run": f"r-{digest[:6]}",
            "dataset_rows": 61420,
            "dataset_first": "2013-05-01",
            "dataset_last": "2013-06-29",
            "recipe": "boosting",
            "reason": "Quality was lost for two windows in a row.",
            "parent": "1b77d0a2c34e",
        }
        gates = {"metrics": {"log_loss": 0.4412, "auc": 0.742, "calibration": 0.011}}
        return {
            "digest": digest * 2,
            "model": "flight-delay",
            "version": version,
            "state": state,
            "created": at(minutes),
            "created_by": "hub",
            "approved_by": "omar" if state == "approved" else "",
            "config": {"landreeve": {"lineage": lineage, "gates": gates}},
        }

    return [
        one("5", "77aa01bc23de77aa01bc23de77aa01bc", "draft", 5),
        one("4", "9f2c77d01ab39f2c77d01ab39f2c77d0", "approved", 300),
        one("3", "1b77d0a2c34e1b77d0a2c34e1b77d0a2", "approved", 9000),
        one("2", "00ff77d01ab300ff77d01ab300ff77d0", "quarantined", 19000),
    ]


def incidents() -> list[dict[str, Any]]:
    subject = {"rollout": "r-0000", "model": "flight-delay", "device": "d-000000000000", "site": "EWR"}
    first = {
        "id": "i-00002",
        "kind": "rollout_failed",
        "key": "k2",
        "state": "open",
        "opened": at(30),
        "closed": "",
        "severity": "error",
        "cause": "probation_worse",
        "sentence": "v2 of flight-delay did worse on real traffic at EWR and was taken back; no other site got it.",
        "subject": subject,
    }
    return [first, {**first, "id": "i-00001", "state": "closed", "severity": "warning", "opened": at(9000)}]


def events() -> list[dict[str, Any]]:
    return [
        {"n": 2, "at": at(3), "name": "update.transition", "severity": "info", "sentence": "Version 4 is in service."},
        {
            "n": 1,
            "at": at(70),
            "name": "worker.restarted",
            "severity": "warning",
            "sentence": "The worker was restarted.",
        },
    ]


def metrics() -> dict[str, list[float]]:
    t = [time.time() - 3600 + 60 * n for n in range(60)]
    return {
        "t": t,
        "p50_ms": [0.6 + (n % 7) / 40 for n in range(60)],
        "p95_ms": [1.5 + (n % 11) / 9 for n in range(60)],
    }


def drift(sites: list[str]) -> dict[str, Any]:
    rng = random.Random(3)
    columns = ["wind_speed", "carrier", "temp", "hour", "distance", "visib"]
    matrix = {c: {s: round(rng.random() ** 3 * 0.5, 3) for s in sites} for c in columns}
    months = [f"2013-{m:02d}-28T00:00:00Z" for m in range(3, 13)]
    quality = [
        {"day": month[:10], "log_loss": 0.44 + 0.02 * (n % 4) + rng.random() / 60, "reference_log_loss": 0.44}
        for n, month in enumerate(months)
    ]
    bell = [1, 4, 9, 22, 41, 66, 70, 51, 30, 12, 5, 2]
    sketches = {
        "wind_speed": {"kind": "histogram", "edges": list(range(11)), "counts": bell[::-1], "missing": 0},
        "carrier": {
            "kind": "categories",
            "values": ["UA", "B6", "DL", "AA"],
            "counts": [9, 7, 5, 2],
            "other": 1,
            "missing": 0,
        },
    }
    return {
        "model": "flight-delay",
        "columns": columns,
        "sites": sites,
        "matrix": matrix,
        "thresholds": {s: dict.fromkeys(columns, 0.2) for s in sites},
        "verdicts": {
            s: {"verdict": "stable", "sentence": "No input changed beyond its limit.", "version": "4"} for s in sites
        },
        "quality": quality,
        "merged": {"release": "9f2c", "sites": sites, "sketches": sketches, "left_out": {}},
    }
