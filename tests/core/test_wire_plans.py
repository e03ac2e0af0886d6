"""Plans on the wire: bounded on the way up, believed by nobody on the way down."""

import msgspec
import pytest
from landreeve.wire.codec import decode
from landreeve.wire.messages import Desired, DesiredModel, Fact, PlanReport
from landreeve.wire.plans import (
    MOST_TRIALS,
    MOST_TRIALS_BYTES,
    BoxFacts,
    PlanTrial,
    RunPlan,
    bounded,
    fault_of,
)

GOOD = RunPlan(backend="openvino", device="cpu", precision="bf16", threads=2, streams=2, batch=8, recipe="nncf-3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "shell"}, "backend"),
        ({"device": "cpu; rm -rf /"}, "device"),
        ({"precision": "int2"}, "precision"),
        ({"threads": 0}, "threads 0"),
        ({"threads": 10**9}, "threads"),
        ({"streams": -1}, "streams"),
        ({"batch": 10**7}, "batch"),
        ({"recipe": "../../etc/passwd"}, "recipe"),
        ({"recipe": "x" * 400}, "recipe"),
    ],
)
def test_plan_nobody_could_mean_is_named(change: dict[str, object], words: str) -> None:
    assert fault_of(GOOD) == ""
    assert words in fault_of(msgspec.structs.replace(GOOD, **change))


def test_trials_beyond_the_bounds_are_counted_and_the_accepted_stay() -> None:
    tried = tuple(PlanTrial(what=f"plan {n}", accepted=n % 10 == 0, why="w" * 500) for n in range(200))
    kept, left_out = bounded(tried)
    assert len(kept) <= MOST_TRIALS
    assert len(kept) + left_out == len(tried)
    assert sum(len(msgspec.json.encode(trial)) for trial in kept) <= MOST_TRIALS_BYTES
    assert {trial.what for trial in kept if trial.accepted} == {trial.what for trial in tried if trial.accepted}


def test_few_trials_are_kept_whole_and_in_order() -> None:
    tried = (PlanTrial(what="a", accepted=False, why="too slow"), PlanTrial(what="b", accepted=True))
    assert bounded(tried) == (tried, 0)


def test_agent_of_before_reads_an_order_with_hints() -> None:
    class OldModel(msgspec.Struct, frozen=True, kw_only=True):
        model: str
        release: str

    class OldDesired(msgspec.Struct, frozen=True, kw_only=True):
        generation: int
        models: tuple[OldModel, ...]

    model = DesiredModel(model="m", release="ab" * 32, version="3", manifest_bytes=9, rollout="r", hints=(GOOD,))
    new = Desired(device="d", generation=4, issued="2026-11-23T06:15:00Z", models=(model,))
    assert msgspec.json.decode(msgspec.json.encode(new), type=OldDesired).models == (
        OldModel(model="m", release="ab" * 32),
    )


def test_report_needs_no_figures_and_ignores_what_it_does_not_know() -> None:
    body = {
        "type": "plan", "model": "m", "release": "ab" * 32, "version": "3", "box_class": "c", "box": {"watts": 6},
        "plan": {"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "magic": True},
    }  # fmt: skip
    raw = msgspec.json.encode({"v": 1, "epoch": 1, "seq": 1, "at": "2026-11-23T06:15:00Z", "body": body})
    told = decode(raw, Fact).body
    assert isinstance(told, PlanReport)
    assert (told.box, told.ratio, told.trials) == (BoxFacts(), None, ())
