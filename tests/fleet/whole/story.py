"""What is drawn from a seed: the fleet, its releases, what people propose, and what goes wrong when."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from landreeve_agent.update.machine import Effect
from landreeve_hub.rollout.policy import Plan, parse_plan

from tests.fleet.whole.boxes import ALL_FEATURES, COMPONENTS

ZONES = ("Europe/Berlin", "Asia/Dubai", "America/New_York", "UTC")
NIGHT = [{"start": "20:00", "end": "06:00"}]
H = 3600.0
SPAN = 20 * H
"""The time within which things go wrong."""


@dataclass(frozen=True)
class Case:
    """One history, drawn from its seed. ``often`` is the share of looks at which the costly rules are asked."""

    seed: int
    size: int = 7
    bug: str = ""
    often: float = 0.1

    @property
    def stress(self) -> bool:
        """Every fourth: copies, backups, retries, and the same release wanted again, each more than once."""
        return self.seed % 4 == 3


@dataclass(frozen=True)
class Wanted:
    """A rollout that somebody will propose: when, of what, and how."""

    at: float
    component: str
    release: int
    plan: Plan
    queue: bool
    force: bool
    emergency: bool


def digest(component: str, release: int) -> str:
    """The release of that number of a component; 0 and below are what boxes have from before."""
    return f"{list(COMPONENTS).index(component):x}{release + 8:x}" + "0" * 62


def fate(seed: int, name: str, share: float) -> dict[str, Effect]:
    """At which effect each release fails on the box, where it does; TAKE_NEXT is one that takes the box down."""
    draw = Random(f"{seed}{name}fate")
    found = {}
    for component in COMPONENTS:
        for release in (1, 2):
            if draw.random() < share:
                ends = [Effect.CHECK, Effect.FETCH, Effect.PREFLIGHT, Effect.ACTIVATE, *[Effect.WATCH] * 4]
                ends += [Effect.TAKE_NEXT] * (4 if Case(seed).stress else 1)
                found[digest(component, release)] = draw.choice(ends)
    return found


def features(draw: Random) -> tuple[str, ...]:
    """What its agent keeps to: most keep to everything, old ones to nothing."""
    kind = draw.random()
    if kind < 0.7:
        return ALL_FEATURES
    return () if kind < 0.85 else tuple(one for one in ALL_FEATURES if draw.random() < 0.5)


def plan(draw: Random, size: int, after: list[str], *, model: bool) -> Plan:
    gate: dict[str, Any] = {
        "max_in_flight": draw.choice([1, 2, 3, 6]),
        "max_failures": draw.choice([0, 1, 3]),
        "max_silent": draw.choice([0, 1, 3]),
        "min_committed": draw.choice([0, 1]),
        "deadline_s": draw.choice([1800, 3600, 7200]),
        "soak_s": draw.choice([0, 600]),
        "on_failure": draw.choice(["rollback", "rollback", "pause", "abort"]),
        "wave_deadline_s": draw.choice([0, 0, 6 * H]),
    }
    raw: dict[str, Any] = {
        "waves": [*draw.choice([[], [{"count": 1}], [{"share": 0.4}, {"count": 2}]]), {"rest": True}],
        "gate": gate,
        "actions": {"drift": draw.choice(["pause", "rollback"]), "accuracy": draw.choice(["pause", "rollback"])},
        "probation": {"max_s": 7200},
        "offline": {"policy": draw.choice(["order", "wait", "exclude"]), "after_s": 1800},
        "jitter_s": draw.choice([0, 0, 300]),
        "back": {"max_in_flight": draw.choice([1, 1_000_000])},
        "late": draw.choice(["wait", "current", "last", "leave"]),
        "after": after,
    }  # fmt: skip
    if draw.random() < 0.3:
        gate["figures"] = draw.choice([{"max_error_rate": 0.05}, {"max_drifted_share": 0.5, "min_devices": 1}])
    if draw.random() < 0.25:
        raw["windows"] = {draw.choice(["activate", "download"]): NIGHT}
        if draw.random() < 0.5:
            raw["windows"] = {"activate": NIGHT, "download": NIGHT}
    if draw.random() < 0.4:
        raw["watch"] = {"for_s": draw.choice([2 * H, 8 * H]), "max_drifted": draw.choice([0, 1]), "max_quality_lost": 0}
    if model and draw.random() < 0.5:
        raw["strategy"] = draw.choice([
            {"kind": "shadow"}, {"kind": "blue_green"}, {"kind": "canary", "shares": [0.1, 0.5, 1.0]},
            {"kind": "ab", "shares": [0.5], "key": "carrier"},
        ])  # fmt: skip
    return parse_plan(raw)


def again(draw: Random, one: Wanted) -> Wanted:
    """The same release wanted once more, behind the first."""
    return replace(one, at=one.at + draw.uniform(600, H), queue=True, force=False, emergency=False)


def wanted(draw: Random, size: int) -> list[Wanted]:
    """What people will propose, in time."""
    found = []
    for _ in range(draw.choice([2, 3, 3, 4, 5])):
        component = draw.choice(["delay", "delay", "noise", "agent", "firmware"])
        others = [name for name in COMPONENTS if name != component]
        after = draw.sample(others, k=draw.choice([1, 1, 2])) if draw.random() < 0.45 else []
        found.append(
            Wanted(
                draw.uniform(0, 0.6 * SPAN), component, draw.choice([1, 1, 2]),
                plan(draw, size, after, model=COMPONENTS[component] == "model"),
                draw.random() < 0.7, draw.random() < 0.3, draw.random() < 0.2,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: one.at)
