"""A plan is checked when the rollout is made: nothing it says can fail open later."""

from typing import Any

import pytest
from landreeve_hub.rollout.policy import BadPlanError, parse_plan
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.waiting import ForDevices, ForOffline, named, words

SITES = {"d-1": "EWR", "d-2": "JFK", "d-3": "LGA"}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"gate": {"max_failures": "1"}}, "plan.gate.max_failures: must be a whole number, not a text"),
        ({"gate": {"max_failures": -1}}, "plan.gate.max_failures: -1 must be at least 0"),
        ({"gate": {"max_in_flight": 0}}, "plan.gate.max_in_flight: 0 must be at least 1"),
        ({"gate": {"deadline_s": 0}}, "plan.gate.deadline_s"),
        ({"gate": {"threshold": 3}}, "plan.gate.threshold: unknown field"),
        ({"gate": {"on_failure": "ignore"}}, "on_failure: 'ignore' is no choice. There are: pause, abort, rollback"),
        ({"waves": []}, "plan.waves: 0 waves"),
        ({"waves": [{}]}, r"plan.waves\[0\]: give exactly one of devices, share, count, query, rest"),
        ({"waves": [{"share": 1.5}]}, r"plan.waves\[0\].share: 1.5"),
        ({"waves": [{"share": "10%"}]}, r"plan.waves\[0\].share: must be a number, not a text"),
        ({"waves": [{"query": "colour:red"}]}, r"plan.waves\[0\].query: 'colour:' is no key; there are: is, hw"),
        ({"windows": {"download": [{"start": "22:00"}]}}, r"plan.windows.download\[0\].end: missing"),
        ({"waves": [{"rest": True}, {"share": 0.5}]}, "only the last wave can take the rest"),
        ({"probation": {"alpha": 2}}, "plan.probation.alpha"),
        ({"probation": {"min_rows": 0}}, "plan.probation.min_rows"),
        ({"probation": {"max_s": -5}}, "plan.probation.max_s"),
        ({"probation": {"max_s": 1e300}}, "plan.probation.max_s"),
        ({"probation": {"min_s": 2, "max_s": 1}}, "plan.probation.min_s: 2.0 must be at most max_s"),
        ({"probation": {"max_error_rates": 0.1}}, r"max_error_rates: unknown field; did you mean max_error_rate\?"),
        ({"gate": {"max_failures": 10**30}}, "plan.gate.max_failures"),
        ({"waves": [{"count": 10**30}]}, r"plan.waves\[0\].count"),
        ({"back": {"waves": [{"query": "tag:x"}]}}, r"plan.back.waves\[0\].query"),
        ([], "plan: must be an object, not a list"),
    ],
)
def test_bad_plan_names_its_field(plan: Any, said: str) -> None:
    with pytest.raises(BadPlanError, match=said):
        parse_plan(plan)


def test_plan_of_nothing_is_everyone_at_once_and_no_failure_accepted() -> None:
    plan = parse_plan(None)
    assert resolve(plan, SITES) == (("d-1", "d-2", "d-3"),)
    assert (plan.gate.max_failures, plan.gate.on_failure) == (0, "rollback")


def test_unknown_site_is_named() -> None:
    with pytest.raises(BadPlanError, match="'PHL' is no device or site"):
        resolve(parse_plan({"waves": [{"devices": ["PHL"]}]}), SITES)


def test_device_is_in_the_first_wave_that_takes_it_alone() -> None:
    plan = parse_plan({"waves": [{"devices": ["JFK"]}, {"share": 0.67}, {"rest": True}]})
    assert resolve(plan, SITES) == (("d-2",), ("d-1", "d-3"), ())


def test_empty_fleet_has_no_rollout() -> None:
    with pytest.raises(BadPlanError, match="no device"):
        resolve(parse_plan(None), {})


def test_words_fit_their_number() -> None:
    assert words(ForDevices("PREFLIGHT", ("EWR",), "v2")) == "EWR is checking v2 on its own hardware"
    assert words(ForDevices("", ("EWR", "JFK"), "v2")) == "EWR and JFK have been told of v2 and not answered yet"
    assert words(ForOffline(("EWR",), None)) == "EWR is offline"
    assert named([f"s{n}" for n in range(9)]) == "s0, s1, s2 and 6 more"
