"""The worst sign decides how a device is, and says why."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from landreeve_hub.fleet.health import SILENCE, Level, Serving, Signs, judge

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MODEL = Serving("delay", "v2", "serving")
WELL = Signs(online=True, last_seen=NOW - timedelta(seconds=20), models=(MODEL,))
DRIFTED = replace(MODEL, window="drifted", window_sentence="Wind has changed.")
BROKEN = replace(MODEL, state="crash_loop", reason="it crashed three times")


@pytest.mark.parametrize(
    ("signs", "level", "sentence"),
    [
        (WELL, Level.HEALTHY, "Serving delay v2."),
        (replace(WELL, models=()), Level.HEALTHY, "Connected; no model yet."),
        (replace(WELL, models=(DRIFTED,)), Level.DRIFT, "Wind has changed."),
        (replace(WELL, models=(DRIFTED, BROKEN)), Level.FAILING, "delay v2 does not work: it crashed three times."),
        (replace(WELL, models=(DRIFTED,), incident="It rolled back."), Level.FAILING, "It rolled back."),
        (replace(WELL, online=False, models=(BROKEN,)), Level.OFFLINE, "Offline; last heard less than a minute ago."),
        (Signs(online=False, last_seen=None), Level.OFFLINE, "Not heard of yet."),
    ],
)
def test_the_worst_sign_decides(signs: Signs, level: Level, sentence: str) -> None:
    verdict = judge(signs, NOW)
    assert (verdict.level, verdict.sentence) == (level, sentence)


def test_a_connection_believed_open_does_not_excuse_silence() -> None:
    silent = replace(WELL, last_seen=NOW - SILENCE - timedelta(minutes=2))
    assert judge(silent, NOW).sentence == "Silent; last heard 7 min ago."
    assert judge(replace(silent, last_seen=NOW - SILENCE), NOW).level is Level.HEALTHY
