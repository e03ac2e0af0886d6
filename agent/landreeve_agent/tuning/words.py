"""A preflight's report for people, in Markdown. Pure."""

from collections.abc import Sequence

from landreeve_agent.tuning.report import PreflightReport, Trial

_SOURCES = {
    "search": "found by trying every plan that might pay",
    "hint": "won on a box of this class before, and was proven here",
    "cache": "kept from an earlier preflight of this release on this box, and checked again",
}


def report_text(report: PreflightReport) -> str:
    """The whole report."""
    won = next((t for t in report.trials if t.plan.name == report.plan.name and t.accepted), None)
    lines = [
        f"# {report.plan.name}",
        "",
        report.sentence[:1].upper() + report.sentence[1:] + ".",
        "",
        f"- The plan was {_SOURCES[report.source]}; the aim is {report.objective}.",
        f"- {_gain(report, won)}",
        f"- {report.metric} on {report.golden_rows} golden rows: {_number(report.metric_value)} at fp32"
        + (f", {_number(won.metric)} with this plan." if won and won.metric is not None else "."),
        f"- Joined rows: {report.plan.batch}; runs at once: {report.plan.streams}.",
        f"- It took {report.seconds:.1f} s. Box class {report.box_class or 'unknown'}.",
        "",
        "| plan | came to | a row µs | CPU µs | by default | metric | memory MB | cold start s | why |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(trial) for trial in report.trials),
    ]
    return "\n".join(lines) + "\n"


def _gain(report: PreflightReport, won: Trial | None) -> str:
    default = report.trials[0] if report.trials else None
    if won is None or default is None or won.p50_us is None or default.p50_us is None:
        return "It was not timed against the default plan."
    if won is default:
        return f"The default plan is best: {_number(won.p50_us)} µs a row."
    cpu = f", {default.cpu_us / won.cpu_us:.1f} times less CPU" if won.cpu_us and default.cpu_us else ""
    return (
        f"{default.p50_us / won.p50_us:.1f} times as fast as the default plan{cpu}: "
        f"{_number(won.p50_us)} against {_number(default.p50_us)} µs a row."
    )


def _row(trial: Trial) -> str:
    cells = [
        ("✓ " if trial.accepted else "✕ ") + trial.what,
        trial.stage,
        _number(trial.p50_us),
        _number(trial.cpu_us),
        "" if trial.ratio is None else f"{trial.ratio:.2f}",
        _number(trial.metric),
        _number(trial.memory_mb),
        _number(trial.cold_start_s),
        trial.why.replace("|", "/"),
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    """
    >>> _number(1234.5), _number(0.04567), _number(None)
    ('1,234', '0.0457', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tried(trials: Sequence[Trial]) -> str:
    """How many plans were tried and how many passed, for the one-sentence summary."""
    return f"{len(trials)} plans tried, {sum(t.accepted for t in trials)} passed their gates"
