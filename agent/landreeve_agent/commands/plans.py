"""How the models of this box run, and why: the reports of their preflights."""

import os
from typing import Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_agent.commands.options import Output, state_of
from landreeve_agent.config import StateFolder, load_settings

Name = Annotated[str | None, typer.Argument(help="the model's name; without it, every model's plan in a line")]


def install(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(plans)


def plans(context: typer.Context, model: Name = None, output: Output = Format.TABLE) -> None:
    """How each model runs on this box; of one model what was tried, what won, and why the others fell."""
    import msgspec

    from landreeve_agent.tuning.report import PreflightReport

    found = _reports(state_of(context))
    if model is None:
        emit([_line(name, report) for name, report in found.items()], output, tuple(_COLUMNS))
        if not found:
            note("no model has been through its preflight here yet")
        return
    report = found.get(model)
    if not isinstance(report, PreflightReport):
        known = ", ".join(sorted(found)) or "none"
        fail(Exit.USAGE, f"no plan of model {model!r} is kept on this box; kept are those of: {known}")
    if output is Format.TABLE:
        typer.echo(report.text(), nl=False)
    else:
        emit(msgspec.to_builtins(report), output)


_COLUMNS = ("model", "plan", "p50_us", "times_faster", "metric", "value", "memory_mb", "source")


def _reports(state: StateFolder) -> dict[str, Any]:
    """The kept report of what serves, by model; read from disk, so that no agent need run."""
    from landreeve_agent.sealing import AtRest
    from landreeve_agent.store.database import StoreError
    from landreeve_agent.tuning.cache import read_kept
    from landreeve_agent.update.pointer import read_pointers, release_folder

    try:
        files = AtRest.opened(state, load_settings(state, os.environ, {}).values).files
    except StoreError as error:
        fail(Exit.AUTH, str(error))
    kept = {
        name: read_kept(release_folder(state.models, name, installed.release), files)
        for name, installed in read_pointers(state.models).items()
    }
    return {name: each.report for name, each in kept.items() if each is not None}


def _line(name: str, report: Any) -> dict[str, Any]:
    won = next((t for t in report.trials if t.plan.name == report.plan.name and t.accepted), None)
    return {
        "model": name,
        "plan": report.plan.name,
        "p50_us": won.p50_us if won else None,
        "times_faster": round(1 / won.ratio, 2) if won and won.ratio else None,
        "metric": report.metric,
        "value": won.metric if won else report.metric_value,
        "memory_mb": report.rss_mb,
        "source": report.source,
    }
