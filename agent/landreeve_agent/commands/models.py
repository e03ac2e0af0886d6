"""The models of this box."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_agent.commands.client import connect, connected
from landreeve_agent.commands.options import Output, state_of

Name = Annotated[str, typer.Argument(help="the model's name")]


def install(app: typer.Typer) -> None:
    """Add these commands."""
    model = typer.Typer(help="The models of this box.", no_args_is_help=True)
    model.command("list")(list_models)
    model.command("add")(add)
    model.command("show")(show)
    model.command("splits")(splits)
    model.command("rollback")(rollback)
    app.add_typer(model, name="model")
    update = typer.Typer(help="What is being changed on this box, and what was.", no_args_is_help=True)
    update.command("list")(list_updates)
    update.command("cancel")(cancel)
    app.add_typer(update, name="update")


def list_models(context: typer.Context, output: Output = Format.TABLE) -> None:
    """The models, each with what it wanted and what it really runs on."""
    models = connected(state_of(context)).get("/models")["items"]
    emit(models, output, ("name", "version", "health", "wanted", "used", "reason", "precision", "p95_ms", "samples"))


def add(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="folder with definition.json or .toml, or the file itself")],
    output: Output = Format.TABLE,
) -> None:
    """Add a model's definition: its columns, label and policies. Data can be collected from then on."""
    from landreeve_models.definition import BadDefinitionError, load_definition

    from landreeve_agent.commands.client import is_running
    from landreeve_agent.intake.definitions import Definitions

    state = state_of(context)
    source = folder / "definition.toml" if (folder / "definition.toml").exists() else folder
    try:
        definition = load_definition(source)
    except BadDefinitionError as error:
        fail(Exit.USAGE, str(error))
    if is_running(state):
        connect(state).post("/models", msgspec.to_builtins(definition))
    else:
        state.prepare()
        Definitions(state.definitions).put(definition)
        note("no agent is running: the definition is read at its next start")
    emit({"name": definition.name, "columns": len(definition.columns), "label": definition.label}, output)


def show(context: typer.Context, model: Name, output: Output = Format.TABLE) -> None:
    """One model with its definition and the history of its updates."""
    emit(connected(state_of(context)).get(f"/models/{quote(model, safe='')}"), output)


def splits(context: typer.Context, model: Name, output: Output = Format.TABLE) -> None:
    """What came of each arm when two versions shared the traffic (canary, ab), from labels as they came."""
    found = connected(state_of(context)).get(f"/models/{quote(model, safe='')}/splits")["items"]
    if output is not Format.TABLE:
        emit(found, output)
        return
    columns = ("last", "arm", "version", "share", "keys", "rows", "errors", "labelled_keys", "outcome", "log_loss")
    emit([{**one, **arm} for one in found for arm in one["arms"]], output, columns)
    for one in found:
        note(_said_of(one))


def _said_of(split: dict[str, Any]) -> str:
    """What the two arms of a split say together."""
    new, good = (arm["version"] or arm["release"][:12] for arm in split["arms"])
    if split["mismatch"]:
        return (
            f"{new} and {good}: the arms hold keys in another proportion than was asked for; do not trust the figures"
        )
    if split["difference"] is None:
        return f"{new} against {good}: no outcome yet, labels are missing"
    low, high = split["difference_low"], split["difference_high"]
    bounds = f" ({low:+.4g} to {high:+.4g})" if low is not None else ""
    return f"{new} against {good}: outcome {split['difference']:+.4g}{bounds}, 95 %, for one look at the end"


def rollback(context: typer.Context, model: Name, output: Output = Format.TABLE) -> None:
    """Return a model to its last good version."""
    emit(connected(state_of(context)).post(f"/models/{quote(model, safe='')}/rollback"), output)


def list_updates(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="only this model's")] = "",
    limit: Annotated[int, typer.Option(help="so many steps, the newest first")] = 40,
    output: Output = Format.TABLE,
) -> None:
    """What is under way, and each step of the updates before it with its reason."""
    box = connected(state_of(context))
    going = [one for one in box.get("/models")["items"] if _under_way(one) and model in {"", one["name"]}]
    steps = [one for one in box.get("/updates")["transitions"] if model in {"", one["model"]}][:limit]
    if output is not Format.TABLE:
        emit({"under_way": going, "transitions": steps}, output)
        return
    emit(steps, output, ("at", "model", "version", "state", "cause", "sentence"))
    for one in going:
        told = one["update"]
        note(
            f"under way: {one['name']} {told['good'] or '-'} -> {told['offered']}: {told['state']}. {told['sentence']}"
            f"{_by_when(told['until'])}"
        )


def _by_when(until: str) -> str:
    return f" Decided by {until[:16].replace('T', ' ')} UTC at the latest." if until else ""


def _under_way(model: dict[str, Any]) -> bool:
    update = model.get("update")
    return update is not None and update["state"] not in {"COMMITTED", "ROLLED_BACK", "REJECTED", "CANCELLED"}


def cancel(context: typer.Context, model: Name, output: Output = Format.TABLE) -> None:
    """Leave the update that is under way: the last good version serves on. Changes nothing when none is."""
    box = connected(state_of(context))
    found = box.get(f"/models/{quote(model, safe='')}")
    if not _under_way(found):
        fail(Exit.CONFLICT, f"{model}: no update is under way; landreeve model rollback returns to the version before")
    emit(box.post(f"/models/{quote(model, safe='')}/rollback"), output)
