"""``audit verify`` and ``audit export``, and how entries are looked for: the same on both command lines."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from landreeve.cli import Exit, Format, emit, fail, note

Before = Annotated[int, typer.Option(min=0, help="Only entries with a smaller number; 0 begins with the newest.")]
ByActor = Annotated[str, typer.Option("--actor", help="Whose acts: how the name begins, a person's in full.")]
OfAction = Annotated[str, typer.Option("--action", help="How the action begins, such as rollout.")]
AboutObject = Annotated[str, typer.Option("--object", help="About what: how it begins, a person's name in full.")]
Decided = Annotated[str, typer.Option("--decision", help="allowed or denied.")]
Since = Annotated[str, typer.Option("--since", help="From this day (2026-01-31, UTC) or moment on.")]
Until = Annotated[str, typer.Option("--until", help="Until the end of this day, or before this moment.")]


def verify(
    ask: Callable[[], dict[str, Any]], offline: Path | None, key: str, seen: Sequence[Path], output: Format
) -> None:
    """Tell whether a log is as it was written: the running one's by ``ask``, or the export ``offline`` (exit 3: no)."""
    if offline is None:
        answer = ask()
        emit(answer, output)
        whole, sentence = answer["whole"], answer.get("sentence", "")
    else:
        from landreeve.audit.verify import check

        report = check(offline, key, seen)
        if isinstance(report, str):
            fail(Exit.USAGE, report)
        emit(report, output)
        whole, sentence = report.whole, report.sentence
    if not whole:
        note(f"The audit log was tampered with: {sentence}")
        raise SystemExit(int(Exit.PROBLEMS))


def export(download: Callable[[], bytes], target: Path, output: Format) -> None:
    """Write an export, over nothing that is there."""
    if target.exists():
        fail(Exit.CONFLICT, f"{target} exists; name another file")
    data = download()
    target.write_bytes(data)
    emit({"file": str(target), "bytes": len(data)}, output)
