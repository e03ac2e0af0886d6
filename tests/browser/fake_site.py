"""A site's public API with made-up data, so that the local console can be looked at without a site."""

import math
import time
from typing import Any

import fake_plans
import fake_records
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

COOKIE = "site_session"
CODE = "ABCD-1234"


class FakeSite:
    """Answers as an agent would. Tests change ``status`` and see the page follow."""

    def __init__(self) -> None:
        self.status = status()
        self.open = False
        self.calls: list[tuple[str, Any]] = []

    def app(self) -> FastAPI:
        app = FastAPI()

        def seen(request: Request) -> JSONResponse | None:
            if self.open or request.cookies.get(COOKIE) == "yes":
                return None
            return JSONResponse({"title": "Sign in first", "status": 401, "detail": "No session."}, 401)

        @app.post("/api/v1/sessions")
        async def sign_in(request: Request) -> JSONResponse:
            if (await request.json()).get("code") != CODE:
                return JSONResponse(
                    {"title": "Wrong code", "detail": "This code is not valid. Ask for a new one."}, 401
                )
            answer = JSONResponse({"ok": True})
            answer.set_cookie(COOKIE, "yes", httponly=True, samesite="strict")
            return answer

        @app.delete("/api/v1/sessions")
        async def sign_out() -> JSONResponse:
            answer = JSONResponse({})
            answer.delete_cookie(COOKIE)
            return answer

        answers = {"status": lambda: self.status, "updates": updates, "training": runs}
        answers |= {"models/flight-delay": model, "drift/flight-delay": drift, "hardware": fake_plans.hardware}
        answers |= {"audit": fake_records.entries, "audit/status": fake_records.site_standing}
        answers |= {"audit/verify": lambda: fake_records.VERIFIED}
        answers |= {"models/flight-delay/stages": fake_plans.stages}

        @app.get("/api/v1/{path:path}")
        async def read(path: str, request: Request) -> JSONResponse:
            if refusal := seen(request):
                return refusal
            if path not in answers:
                return JSONResponse({"title": "Not found", "status": 404, "detail": f"no {path}"}, 404)
            return JSONResponse(answers[path]())

        @app.post("/api/v1/{path:path}")
        async def act(path: str, request: Request) -> JSONResponse:
            if refusal := seen(request):
                return refusal
            self.calls.append((path, await request.json()))
            return JSONResponse({"p": 0.2731, "model": "flight-delay", "version": "4"})

        return app


def at(minutes_ago: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - minutes_ago * 60))


def status() -> dict[str, Any]:
    now = int(time.time())
    t = list(range(now - 300, now, 2))
    p50 = [round(0.62 + 0.12 * math.sin(i / 9) + 0.05 * math.sin(i * 1.7), 3) for i in range(len(t))]
    p95 = [round(1.6 + 0.4 * math.sin(i / 7 + 1) + 0.25 * math.sin(i * 2.3), 3) for i in range(len(t))]
    return {
        "site": "JFK",
        "device": "d-k3m2p4q5r6s7",
        "version": "0.1.0",
        "time": at(0),
        "verdict": {
            "level": "warning",
            "sentence": "Everything works. One thing to look at.",
            "detail": "flight-delay sees unusual data since 10:42: wind_speed and carrier changed.",
            "link": "/data",
        },
        "predictions_today": 10034,
        "predictions_total": 328521,
        "p50_ms": 0.64,
        "p95_ms": 1.87,
        "runs_on": "CPU",
        "serving": "http://127.0.0.1:8600",
        "hub": {"state": "in_sync", "waiting": 0, "last_contact": at(0), "certificate_days": 83},
        "worker": {"pid": 4242, "rss_mb": 148.0, "restarts": 1, "ready": True},
        "machine": {"cpu_percent": 32.0, "memory_percent": 46.0, "disk_percent": 71.0, "rss_mb": 61.0},
        "models": models(),
        "series": {"t": t, "p50": p50, "p95": p95},
        "happened": [
            {"at": at(4), "name": "drift", "sentence": "wind_speed moved beyond its limit.", "severity": "warning"},
            {"at": at(72), "name": "update.transition", "sentence": "Version 4 is in service.", "severity": "info"},
            {
                "at": at(75),
                "name": "worker.restarted",
                "sentence": "The inference worker was killed by SIGSEGV.",
                "severity": "error",
            },
            {"at": at(3000), "name": "hub.joined", "sentence": "Joined the fleet.", "severity": "info"},
        ],
    }


def models() -> list[dict[str, Any]]:
    base = {"p95_ms": 1.87, "today": 8731, "samples": 61420, "labels": 60112, "update": None}
    return [
        base
        | {
            "name": "flight-delay",
            "purpose": "The chance that a departure leaves 15 minutes late or more",
            "version": "4",
            "release": "9f2c77d01ab3",
            "health": "data_changed",
            "wanted": "NPU",
            "used": "CPU · 2 threads",
            "reason": "No NPU driver is loaded: intel_vpu is missing from this kernel.",
            "precision": "int8",
        },
        base
        | {
            "name": "gate-assign",
            "purpose": "Suggests a gate for each arrival",
            "version": "2",
            "release": "1b77d0a2c34e",
            "health": "probation",
            "wanted": "CPU",
            "used": "CPU · 1 thread",
            "reason": "",
            "precision": "fp32",
            "today": 1204,
            "update": {
                "until": "2026-11-24T07:00:00Z",
                "state": "probation",
                "sentence": "212 of 400 labelled rows seen; no worse so far.",
                "offered": "4",
                "good": "3",
            },
        },
        base
        | {
            "name": "bag-count",
            "purpose": "Counts bags per flight",
            "version": "",
            "release": "",
            "health": "collecting",
            "wanted": "auto",
            "used": "",
            "reason": "",
            "precision": "",
            "p95_ms": None,
            "today": 99,
        },
    ]


def model() -> dict[str, Any]:
    columns = [
        {"name": "carrier", "kind": "category", "choices": ["UA", "B6", "DL", "AA"]},
        {"name": "distance", "kind": "number", "unit": "mi", "low": 80, "high": 5000},
        {"name": "hour", "kind": "number", "low": 0, "high": 23},
        {"name": "temp", "kind": "number", "unit": "°F", "low": 0, "high": 110},
        {"name": "wind_speed", "kind": "number", "unit": "mph", "low": 0, "high": 60},
        {"name": "visib", "kind": "number", "unit": "mi", "low": 0, "high": 10},
    ]
    return {
        "name": "flight-delay",
        "definition": {"columns": columns},
        "history": updates(),
        "plan": fake_plans.report(at(131)),
    }


def updates() -> list[dict[str, Any]]:
    steps = [
        ("committed", "Kept: 400 labelled rows, log loss 0.012 better than version 3.", 72),
        ("probation", "Answering real traffic beside version 3.", 130),
        ("preflight", "Golden set reproduced; int8 with 2 threads won on this box (0.61 ms).", 131),
        ("downloading", "Fetching 1.2 MB.", 132),
        ("rolled_back", "Version 2 did worse on real traffic and was taken back.", 9000),
    ]
    return [
        {"at": at(m), "model": "flight-delay", "state": s, "version": "4", "cause": s, "sentence": w}
        for s, w, m in steps
    ]


def runs() -> list[dict[str, Any]]:
    request = {"model": "flight-delay", "first": "2013-05-01", "last": "2013-06-29", "reason": "Quality was lost."}
    return [
        {"id": "r-7a2b", "model": "flight-delay", "state": "running", "request": request, "at": at(2)},
        {"id": "r-5c1d", "model": "flight-delay", "state": "finished", "request": request, "at": at(5000)},
    ]


def drift() -> dict[str, Any]:
    window = {
        "window": 30,
        "first": "2013-07-22T00:00:00Z",
        "last": "2013-07-29T00:00:00Z",
        "rows": 2120,
        "scores": {"wind_speed": 0.34, "carrier": 0.22, "temp": 0.11, "hour": 0.01, "distance": 0.004},
        "thresholds": {"wind_speed": 0.2, "carrier": 0.2, "temp": 0.2, "hour": 0.2, "distance": 0.2},
        "drifted": ["wind_speed", "carrier"],
        "quality": {"log_loss": 0.5123, "labelled": 2010, "auc": 0.71},
        "sketches": {
            "carrier": {"kind": "categories", "values": ["UA", "B6", "DL", "AA"], "counts": [9, 7, 5, 2]},
            "temp": {"kind": "histogram", "edges": [30, 45, 61, 80], "counts": [1, 4, 6, 3, 1]},
        },
        "verdict": "drifted",
        "sentence": "Two of five inputs changed: wind_speed and carrier.",
    }
    earlier = [window | {"first": f"2013-07-{d:02d}T00:00:00Z", "verdict": "stable", "drifted": []} for d in (15, 8, 1)]
    return {"windows": [window, *earlier]}
