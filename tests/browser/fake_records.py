"""Made-up audit logs and signing keys, with names and ids as long as real ones."""

import time
from typing import Any

HASH = "9f2c77d01ab3e45f" * 4
LOG_KEY = "landreeve-hub/audit+8f1d22aa+AfW3kZp1nq0m7Lx9cVb2Hs5dTgYuIoPaSdFgHjKlZxCv"
ACTS = (
    ("mona", "rollout.start", "r-0001", "allowed", {"release": f"sha256:{HASH}", "waves": [1, 2]}),
    ("site:d-k3m2p4q5r6s7:console", "update.committed", "flight-delay", "allowed", {"version": "4"}),
    ("omar", "POST /api/v1/releases/approve", "a-model-whose-name-is-as-long-as-names-may-be", "denied", {}),
    ("hub", "keys.rotate", "director", "allowed", {"state": "in force"}),
)


def entries(n: int = 12) -> dict[str, Any]:
    def one(seq: int) -> dict[str, Any]:
        actor, action, about, decision, data = ACTS[seq % len(ACTS)]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - (60 - seq) * 977))
        same = {"prev": HASH, "hash": HASH, "format": 1}
        return {"seq": seq, "at": moment, "actor": actor, "action": action, "object": about, "decision": decision,
                "data": data, **same}  # fmt: skip

    return {"items": [one(seq) for seq in range(60, 60 - n, -1)], "next": 10}


def standing(sites: list[tuple[str, str]]) -> dict[str, Any]:
    seen = [{"device": d, "site": s, "seen": 4711, "at": "2026-01-01T00:00:00Z", "witnessed": 1201, "refused": "",
             "sentence": ""} for d, s in sites]  # fmt: skip
    if seen:
        seen[0] |= {"refused": "fork", "sentence": "the log has other entries than it had: it was written anew"}
    return {"origin": "landreeve-hub/audit", "key": LOG_KEY, "entries": 12345, "sealed": 12301, "root": HASH,
            "sealed_at": "2026-01-01T00:00:00Z", "witnesses": 0, "witnessed": 1201, "witnesses_then": 2, "fault": "",
            "sites": seen}  # fmt: skip


def site_standing() -> dict[str, Any]:
    return {"entries": 523, "sealed": 519, "sealed_at": "2026-01-01T00:00:00Z", "root": HASH, "witnessed": 519,
            "hub_seen": 12301, "hub_refused": "shrunk", "hub_sentence": "the log is shorter than it was",
            "refused_by_hub": "", "fault": "", "origin": "landreeve-site/8f1d22aa", "key": LOG_KEY}  # fmt: skip


VERIFIED = {"whole": True, "entries": 12345, "checkpoint": 12301, "root": HASH, "witnesses": 2}


def keys() -> dict[str, Any]:
    def role(repository: str, name: str, names: str, days: float, **more: Any) -> dict[str, Any]:
        signers = [{"name": key, "keyid": HASH, "where": where} for key, _, where in map(_parted, names.split())]
        return {"repository": repository, "role": name, "version": 3, "threshold": 1, "keys": [], "days_left": days,
                "expires": "2027-05-01T00:00:00+00:00", "alarm": "", "signers": signers, **more}  # fmt: skip

    roots = "root-1/here root-2/elsewhere root-3/elsewhere"
    return {
        "roles": [
            role("director", "root", roots, 610.4, threshold=2),
            role("targets", "root", roots, 300.2, threshold=2, alarm="sign anew"),
            role("targets", "targets", "targets/credentials", -2, alarm="expired"),
            role("targets", "flights-of-the-north-atlantic", "ada/elsewhere bob/elsewhere", 200),
            role("targets", "timestamp", "director/here", 13.5, version=0),
        ],
        "advice": ["targets targets expired: landreeve-hub keys renew targets"],
    }


def _parted(text: str) -> tuple[str, str, str]:
    return text.partition("/")


def changes() -> list[dict[str, Any]]:
    what = [
        "targets root 2 → 3: targets gains the key targets (9f2c77d0)",
        "targets root 2 → 3: valid until 2028-01-01",
    ]
    return [{"id": "change-7", "subject": "root", "state": "awaiting signatures", "signatures": "1 of 2",
             "missing": ["root-2 (9f2c77d0)", "root-3 (1b77d0a2)"], "what": what, "how": ""}]  # fmt: skip


def people() -> list[dict[str, Any]]:
    same = {"keyid": HASH, "brought": "2026-01-01T00:00:00Z"}
    return [
        {"person": "ada", "state": "admitted", "judged_by": "omar", "roles": ["flights-of-the-north-atlantic"], **same},
        {"person": "bartholomew.of.the.night.shift", "state": "brought", "judged_by": "", "roles": [], **same},
    ]
