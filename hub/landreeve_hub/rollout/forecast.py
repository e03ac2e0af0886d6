"""What a person may not have meant by the waves of a plan: waves without devices, devices without a wave. Pure."""

from collections.abc import Mapping, Sequence

from landreeve_hub.fleet.filter import Row, select
from landreeve_hub.rollout.policy import Plan, Wave
from landreeve_hub.rollout.resolve import Waves
from landreeve_hub.rollout.waiting import named

MOST_LABELS = 12


def wave_notes(plan: Plan, waves: Waves, sites: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    """A sentence for each wave that takes nobody, and one for the devices that no wave takes. ``rows`` are what the
    filter language looks at."""
    found = [
        f"Wave {number + 1} takes nobody: {_why_empty(wave, rows)}"
        for number, (wave, taken) in enumerate(zip(plan.waves, waves, strict=True))
        if not taken
    ]
    taken = {device for wave in waves for device in wave}
    left = sorted(site for device, site in sites.items() if device not in taken)
    if left:
        verb = "is" if len(left) == 1 else "are"
        keeps = "keeps" if len(left) == 1 else "keep"
        found.append(
            f"{named(left)} {verb} in no wave and {keeps} the version there is; "
            "a last wave of the rest would take everyone."
        )
    return found


def _why_empty(wave: Wave, rows: Sequence[Row]) -> str:
    if not wave.query or select(rows, wave.query):
        return "its devices are in earlier waves."
    text = f"no device answers to {wave.query[:80]!r} now."
    if "tag:" not in wave.query.lower():
        return text
    labels = sorted({f"{key}={value}" for row in rows for key, value in (row.get("labels") or {}).items()})
    more = f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
    there = f"Labels there are: {', '.join(labels[:MOST_LABELS])}{more}." if labels else "No device has a label."
    return f"{text} {there}"
