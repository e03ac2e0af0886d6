"""``plans``."""

from typing import Annotated, Any

import typer
from landreeve.cli import Format, emit, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

COLUMNS = ("model", "version", "class", "cpu", "threads", "winner", "agree", "speed-up", "preflight")


def group() -> typer.Typer:
    """``plans list``."""
    group = typer.Typer(help="How models run best on each class of boxes.", no_args_is_help=True)

    @group.command("list")
    def listed(
        *,
        model: Annotated[str, typer.Option(help="Only this model's.")] = "",
        release: Annotated[str, typer.Option(help="Only this release's: a digest or MODEL@VERSION.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """The winner of each release and class of boxes, and the seconds each site's preflight took."""
        found = connect(url, token, state).get("plans", model=model, release=release)
        if output is not Format.TABLE:
            emit(found, output)
            return
        emit([_row(row) for row in found], output, COLUMNS)
        if found:
            note("* started from a hint of this hub")

    return group


def _row(row: dict[str, Any]) -> dict[str, Any]:
    winner, box = row["winner"], row["box"]
    return {
        "model": row["model"],
        "version": row["version"],
        "class": row["box_class"][:8],
        "cpu": box.get("cpu", ""),
        "threads": box.get("threads", ""),
        "winner": winner["name"],
        "agree": f"{winner['boxes']} of {row['boxes']}",
        "speed-up": f"{1 / winner['ratio']:.1f} x" if winner["ratio"] else "",
        "preflight": ", ".join(_took(report) for report in row["reports"]),
    }


def _took(report: dict[str, Any]) -> str:
    """
    >>> _took({"site": "EWR", "seconds": 9.24, "hints": 1})
    'EWR 9.2 s*'
    """
    return f"{report['site']} {report['seconds']:.1f} s{'*' if report['hints'] else ''}"
