"""What is in this box, what can be used, and what really works."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note
from landreeve.settings import SettingsError

from landreeve_agent.commands.client import connected, is_running
from landreeve_agent.commands.options import Output, state_of
from landreeve_agent.config import load_settings
from landreeve_agent.errors import OperatorError

if TYPE_CHECKING:
    from landreeve_agent.hardware.inventory import Inventory
    from landreeve_agent.hardware.survey import Survey

_DEVICES = ("device", "kind", "driver", "firmware", "memory", "usable", "proven", "note")
_PROOFS = ("runtime", "device", "target", "result", "tiny_us", "at", "note")


def install(app: typer.Typer) -> None:
    """Add these commands."""
    hardware = typer.Typer(help="What is in this box and what really works.", no_args_is_help=True)
    hardware.command("list")(list_hardware)
    hardware.command("prove")(prove)
    hardware.command("bench")(bench)
    app.add_typer(hardware, name="hw")


def list_hardware(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Processor, memory and accelerators: which are present, usable, and proven to run a model."""
    from landreeve_agent.hardware.room import document_of

    if is_running(state_of(context)):
        document = connected(state_of(context)).get("/hardware")
    else:
        survey = _survey(context)
        document = document_of(_surveyed(survey.examine))
    if output is not Format.TABLE:
        emit(document, output)
    else:
        _show(document)


def prove(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="also run again what is proven already")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Run a tiny model on each device and read back where it ran. Exit code 3 when one that is listed does not work."""
    from landreeve_agent.hardware.prove import Candidate

    survey = _survey(context)
    if survey.override:
        fail(Exit.CONFLICT, f"hardware.override is set to {survey.override}: unset it to prove the real devices")
    known = {(p.runtime, p.target) for p in _surveyed(survey.examine).proofs if p.ok}

    def again(candidate: Candidate) -> bool:
        return every or (candidate.runtime, candidate.target) not in known

    proofs = _surveyed(lambda: survey.study(again)).proofs
    emit(proofs if output is not Format.TABLE else [_proof_row(_plain(p)) for p in proofs], output, _PROOFS)
    if not all(proof.ok for proof in proofs):
        raise SystemExit(int(Exit.PROBLEMS))


def bench(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Short figures: memory bandwidth, and latency and GFLOP/s of each proven device. Takes some seconds for each."""
    from landreeve_agent.hardware.bench import jobs, measure

    survey = _survey(context)
    inventory = _surveyed(survey.study)
    rows = []
    for job in jobs(inventory):
        note(f"measuring {job.what} on {_short(job.target)}, {job.threads} thread{'' if job.threads == 1 else 's'} …")
        rows.append(measure(job))
    load = f"{os.getloadavg()[0]:.1f}"
    if output is Format.TABLE:
        typer.echo(f"{inventory.text}; load {load}")
        shown = [{**_plain(row), "target": _short(row.target)} for row in rows]
        emit(shown, output, ("what", "target", "threads", "latency_us", "gflops", "gbytes_s", "problem"))
    else:
        emit({"box": inventory.text, "load": float(load), "figures": rows}, output)


def _survey(context: typer.Context) -> "Survey":
    """This box with the state folder's memory and settings."""
    from landreeve_agent.hardware.survey import Survey

    state = state_of(context)
    try:
        state.prepare()
        settings = load_settings(state, os.environ, {}).values
    except SettingsError as error:
        fail(Exit.USAGE, str(error))
    except OperatorError as error:
        fail(Exit.FAILURE, str(error))
    return Survey(state.hardware, override=settings.hardware.override)


def _surveyed(look: Any) -> "Inventory":
    try:
        found: Inventory = look()
    except OperatorError as error:
        fail(Exit.USAGE, str(error))
    return found


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _short(target: str) -> str:
    return target.removesuffix("ExecutionProvider")


def _show(document: dict[str, Any]) -> None:
    cpu, limits, memory, heat = document["cpu"], document["limits"], document["memory"], document["heat"]
    typer.echo(document["text"])
    for line in (*_cpu_lines(cpu, limits), *_memory_lines(memory, limits), *_heat_lines(heat)):
        typer.echo(f"  {line}")
    if document["override"]:
        typer.echo(f"  ! partly told by {document['override']} (hardware.override)")
    typer.echo("")
    emit([_cpu_row(document), *(_device_row(a, document) for a in document["accelerators"])], Format.TABLE, _DEVICES)
    typer.echo("")
    if document["proofs"]:
        emit([_proof_row(p) for p in document["proofs"]], Format.TABLE, _PROOFS)
    else:
        typer.echo("Nothing is proven yet. Next: landreeve hw prove (a running agent does it by itself).")
    for runtime in document["runtimes"]:
        if runtime["problem"]:
            typer.echo(f"{runtime['name']}: {runtime['problem']}")


def _cpu_lines(cpu: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    parts = [f"{cpu['architecture']}, {cpu['physical_cores']} cores, {cpu['logical_cores']} threads"]
    if cpu["sockets"] > 1:
        parts.append(f"{cpu['sockets']} sockets")
    if cpu["numa_nodes"] > 1:
        parts.append(f"{cpu['numa_nodes']} memory nodes")
    if cpu["efficiency_cores"]:
        parts.append(f"fast: {cpu['performance_cpus']}, slow: {cpu['efficiency_cpus']}")
    yield ", ".join(parts)
    if cpu["isa"]:
        yield " ".join(cpu["isa"])
    if cpu["affinity"] < cpu["logical_cores"] or limits["cpus"] is not None:
        quota = "no quota" if limits["cpus"] is None else f"a quota of {limits['cpus']:g} CPUs"
        where = f" ({limits['source']})" if limits["source"] else ""
        yield f"may use {cpu['affinity']} of {cpu['logical_cores']} threads, {quota}{where}"


def _memory_lines(memory: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    limited = f", {memory['usable_bytes'] / 1e9:.1f} GB for us" if limits["memory_bytes"] is not None else ""
    swap = f", swap {memory['swap_bytes'] / 1e9:.1f} GB" if memory["swap_bytes"] else ", no swap"
    free = f"{memory['available_bytes'] / 1e9:.1f} GB free"
    yield f"memory {memory['total_bytes'] / 1e9:.1f} GB{limited}, {free}{swap}"


def _heat_lines(heat: dict[str, Any]) -> Iterator[str]:
    if heat["celsius"]:
        yield ", ".join(f"{name} {degrees:.0f} °C" for name, degrees in heat["celsius"].items())
    if heat["throttle_count"]:
        yield f"throttled {heat['throttle_count']} times since the start of the box"
    if heat["problem"]:
        yield f"! {heat['problem']}"


def _cpu_row(document: dict[str, Any]) -> dict[str, Any]:
    row = {"device": document["cpu"]["model"], "kind": "cpu", "driver": "", "firmware": "", "usable": "yes"}
    total = f"{document['memory']['usable_bytes'] / 1e9:.1f} GB"
    return {**row, "memory": total, "proven": _proven("cpu", document), "note": ""}


def _device_row(device: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    memory = device["memory_bytes"]
    trouble = "; ".join(filter(None, (device["problem"], device["fix"])))
    return {
        "device": device["name"],
        "kind": device["kind"],
        "driver": f"{device['driver']} {device['driver_version']}".strip() or "none",
        "firmware": device["firmware"],
        "memory": f"{memory / 1e9:.1f} GB" if memory else "",
        "usable": "yes" if device["usable"] else "no",
        "proven": _proven(device["kind"], document),
        "note": trouble or ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in device["facts"].items()),
    }


def _proven(kind: str, document: dict[str, Any]) -> str:
    tried = [p for p in document["proofs"] if p["device"] == kind]
    good = dict.fromkeys(p["runtime"] for p in tried if p["ok"])
    return ", ".join(good) or ("no" if tried else "not tried")


def _proof_row(proof: dict[str, Any]) -> dict[str, Any]:
    return {
        "runtime": proof["runtime"],
        "device": proof["device"],
        "target": _short(proof["target"]),
        "result": "proven" if proof["ok"] else proof["cause"],
        "tiny_us": proof["latency_us"],
        "at": proof["at"][:19].replace("T", " "),
        "note": proof["sentence"],
    }
