"""What a rollout waits for, in words, at every moment: each reachable state with each state of its members."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from landreeve.ui.language import load
from landreeve.wire.strategy import TrialStage
from landreeve_hub.rollout import waiting
from landreeve_hub.rollout.machine import ALONE, decide, uncovered
from landreeve_hub.rollout.policy import Plan, parse_plan
from landreeve_hub.rollout.roster import Back, Member, Outcome, Roster
from landreeve_hub.rollout.state import FINAL, Around, DeviceFact, First, Report, Rollout, State
from landreeve_hub.rollout.waiting import words

T0 = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
OLD, NEW = "0" * 64, "1" * 64
STAGES = (
    "", "RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "ROLLING_BACK",
    "OF_A_NEWER_AGENT",
)  # fmt: skip
ARABIC = load("ar")
GATE = {"max_failures": 9, "max_silent": 9, "max_in_flight": 1}


@dataclass(frozen=True)
class Case:
    """A member as it is, its device as it is seen, the plan and what else goes on."""

    name: str
    member: dict[str, Any]
    fact: dict[str, Any]
    plan: dict[str, Any]
    around: Around = ALONE


def held() -> Iterator[Case]:
    """A device that is due and not ordered, for every reason there is."""
    never = {"download": [{"start": "01:00", "end": "02:00"}], "activate": [{"start": "03:00", "end": "04:00"}]}
    night = {"activate": [{"start": "01:00", "end": "02:00"}]}
    first = First("firmware", "r-000000", State.RUNNING, {"d-1": Member("d-1", "EWR", 0)})
    member = {"outcome": Outcome.WAITING}
    for name, fact, plan, around in (
        ("conflict", {"generation": 9}, {}, Around()),
        ("doubled", {"suspect": "two boxes speak under its name"}, {}, Around()),
        ("suspect", {"suspect": "someone marked it as not to be trusted"}, {}, Around()),
        ("offline", {"online": False}, {"offline": {"policy": "wait"}}, Around()),
        ("left out soon", {"online": False}, {"offline": {"policy": "exclude", "after_s": 60}}, Around()),
        ("spread", {}, {"jitter_s": 86_400}, Around()),
        ("no zone", {"labels": {"timezone": "Mars/Crater"}}, {"windows": night}, Around()),
        ("outside", {}, {"windows": night}, Around()),
        ("never open", {}, {"windows": never}, Around()),
        ("busy site", {}, {}, Around(busy={"EWR": "r-000009"})),
        ("not first", {}, {"after": ["firmware"]}, Around(first=(first,))),
    ):
        yield Case(name, member, fact, plan, around)


def flying() -> Iterator[Case]:
    """A device under way at every stage, heard or not."""
    for stage in STAGES:
        report = Report("r-000001", 1, NEW, stage, "told", "So it is.", rows=12) if stage else None
        member = {"outcome": Outcome.ORDERED, "stage": stage, "ordered_at": T0, "heard": T0, "prior": OLD}
        if stage == "ROLLING_BACK":  # heard as a failure: it is under way no more
            member["outcome"] = Outcome.FAILED
        yield Case(f"at {stage or 'nothing'}", member, {"report": report}, {})
        yield Case(f"offline at {stage}", member, {"report": report, "online": False, "last_seen": T0}, {})
        yield Case(f"never seen at {stage}", member, {"report": report, "online": False}, {})
        yield Case(f"in conflict at {stage}", member, {"report": report, "generation": 9}, {})
    for role in ("listens", "stands_by", "shares", "of_a_newer_agent"):
        report = Report("r-000001", 1, NEW, "PROBATION", trial=TrialStage(role=role, share=0.1))
        member = {"outcome": Outcome.ORDERED, "stage": "PROBATION", "ordered_at": T0, "heard": T0, "prior": OLD}
        yield Case(f"{role} on probation", member, {"report": report}, {})
    many = {"outcome": Outcome.ORDERED, "stage": "PROBATION", "ordered_at": T0, "heard": T0, "prior": OLD}
    rows = Report("r-000001", 1, NEW, "PROBATION", rows=900)
    yield Case("long on probation", many, {"report": rows}, {"probation": {"min_rows": 500}})


def settled() -> Iterator[Case]:
    for outcome, back in itertools.product(sorted(set(Outcome) - {Outcome.WAITING, Outcome.ORDERED}), Back):
        member = {"outcome": outcome, "back": back, "prior": OLD, "ordered_at": T0, "cause": "told", "sentence": "So."}
        yield Case(f"{outcome.value} {back.value}", member, {}, {"gate": {**GATE, "min_committed": 0}})


CASES = [*held(), *flying(), *settled()]


def built(case: Case, state: State, kind: str, other: Outcome, wave: int) -> tuple[Rollout, dict[str, DeviceFact]]:
    """The case's device beside another one, in the same wave or in the next."""
    plan: Plan = parse_plan({"gate": GATE, "watch": {"for_s": 86_400, "max_drifted": 5}, **case.plan})
    more = {"prior": OLD, "ordered_at": T0, "heard": T0} if other is not Outcome.WAITING else {}
    goal = {"target": OLD, "target_version": "v1"} if kind == "return" else {}
    roster = Roster([Member("d-1", "EWR", 0, **goal, **case.member), Member("d-2", "JFK", wave, other, **goal, **more)])
    rollout = Rollout(
        id="r-000001", model="m", digest=NEW, version="v2", plan=plan, state=state, members=roster, wave_since=T0,
        kind=kind, of="r-000000" if kind != "update" else "", sentence="Paused by ann.", cause="paused",
        finished=T0 if state is State.FINISHED else None,
    )  # fmt: skip
    facts = {
        "d-1": DeviceFact("d-1", "EWR", running=OLD, **case.fact),
        "d-2": DeviceFact("d-2", "JFK", running=OLD),
    }
    return rollout, facts


def reachable(case: Case, state: State) -> bool:
    """Nobody is ordered before the approval; who is on the way back is so in a rollout that was stopped, or is over. A
    way back is itself never proposed, and never led back."""
    member = case.member
    if state in {State.DRAFT, State.AWAITING_APPROVAL}:
        return member["outcome"] is Outcome.WAITING
    if state is State.ROLLING_BACK:
        return member.get("back") is Back.RETURNING  # with nobody to return it is over at once
    if state in {State.ROLLED_BACK, State.ABORTED}:
        return member["outcome"] is not Outcome.WAITING and (member.get("back") is not Back.NO)
    return member.get("back", Back.NO) is Back.NO or state is State.FINISHED


def said(sentence: str, where: str) -> None:
    """A sentence of its own: long enough, with nothing left unfilled, and the same in Arabic."""
    assert len(sentence) > 12, where
    assert not any(empty in sentence for empty in ("None", "{", "  ", "nobody", " :")), (where, sentence)
    arabic = ARABIC.said(sentence)
    assert 'lang="en"' not in arabic, (where, sentence)
    assert any("\u0600" <= letter <= "\u06ff" for letter in arabic), (where, sentence)


_NEVER = {
    ("return", State.ROLLING_BACK),
    *((k, s) for k in ("return", "late") for s in (State.DRAFT, State.AWAITING_APPROVAL)),
}


@pytest.mark.parametrize(
    ("kind", "state"), sorted(set(itertools.product(("update", "return", "late"), State)) - _NEVER)
)
def test_every_state_says_what_it_waits_for(kind: str, state: State) -> None:
    seen = 0
    for case, other, wave in itertools.product(CASES, (Outcome.WAITING, Outcome.ORDERED, Outcome.COMMITTED), (0, 1)):
        if not reachable(case, state) or (state is State.AWAITING_APPROVAL and other is not Outcome.WAITING):
            continue
        rollout, facts = built(case, state, kind, other, wave)
        child = way_back_of(rollout) if state is State.ROLLING_BACK else None
        decision = decide(rollout, facts, T0 + timedelta(seconds=1), replace(case.around, child=child))
        where = f"{kind} {state} {case.name} beside {other} in wave {wave}"
        after = decision.rollout
        sentences = [words(one) for one in decision.waiting]
        for sentence in sentences:
            said(sentence, where)
        if after.state not in FINAL:
            assert sentences, where
        if after.state is State.RUNNING and not case.around.earlier:
            hidden = [m.site for m in uncovered(after) if not any(m.site in sentence for sentence in sentences)]
            slots = any(" due, at most " in sentence for sentence in sentences)
            assert not hidden or slots, (where, hidden, sentences)
        seen += 1
    assert seen > 15, seen


def way_back_of(rollout: Rollout) -> Rollout:
    """The way back of a rollout that is being led back, under way."""
    members = Roster([Member("d-1", "EWR", 0, Outcome.ORDERED, target=OLD, target_version="v1", ordered_at=T0)])
    return Rollout(
        id=rollout.back_id, model="m", digest=NEW, version="v2", plan=rollout.plan, state=State.RUNNING, kind="return",
        of=rollout.id, members=members, wave_since=T0,
    )  # fmt: skip


@pytest.mark.parametrize("sites", [("EWR",), ("EWR", "JFK"), ("a", "b", "c", "d", "e", "f")])
def test_every_kind_of_waiting_has_its_words_for_one_site_and_for_many_in_both_languages(
    sites: tuple[str, ...],
) -> None:
    w = waiting
    every: list[w.Waiting] = [
        w.ForApproval("v2"), w.ForPerson("Paused by ann."), w.ForOffline(sites, T0), w.ForOffline(sites, None),
        w.ForSoak(0, T0), w.ForSlot(len(sites), 3), w.ForReturn(sites), w.ForConnection(sites),
        w.ForConnection(sites, T0),
        w.ForWindow(sites, T0), w.ForWindow(sites, None), w.ForZone(sites, "timezone"), w.ForStagger(sites, T0),
        w.ForSite(sites), w.ForSite(sites, ("r-000002",)), w.ForConflict(sites),
        w.ForTrust(sites, "two boxes speak under its name"), w.ForEarlier("r-000001"),
        w.ForFirst(sites, "firmware (rollout r-000003)"), w.ForWatch(T0),
        *(w.ForFigures(0, missing, T0) for missing in (
            "error rate was told by 0 of 2 devices", "5 of 10 rows were answered on probation",
            "5 of 10 rows lie in closed windows",
        )),
        *(w.ForDevices(stage, sites, "v2") for stage in STAGES),
        *(w.ForDevices("PROBATION", sites, "v2", trial=w.Trial(at, 0.005)) for at in w.TrialAt),
        w.ForDevices("PROBATION", sites, "v2", trial=w.Trial(w.TrialAt.SHARE, 0.5, "till")),
        w.ForDevices("PROBATION", sites, "v2", 5, 10), w.ForDevices("PROBATION", sites, "v2", 15, 10),
    ]  # fmt: skip
    assert {type(one) for one in every} == set(w.Waiting.__args__)
    for one in every:
        said(words(one), repr(one))
