"""Write docs/reference-*.md from the code: settings of both sides and both command lines.

python docs/reference.py
"""

from collections.abc import Iterator
from pathlib import Path

import click
from landreeve.settings import Field, fields_of

HERE = Path(__file__).resolve().parent


def settings() -> Iterator[tuple[str, Field]]:
    """Every setting with the program it belongs to."""
    from landreeve_agent.config import AgentSettings
    from landreeve_hub.config import HubSettings

    for program, schema in (("landreeve", AgentSettings), ("landreeve-hub", HubSettings)):
        for field in fields_of(schema):
            yield program, field


def commands() -> Iterator[tuple[str, str]]:
    """Every command with its one-line help."""
    import typer.main
    from landreeve_agent.__main__ import app as agent
    from landreeve_hub.__main__ import app as hub

    for name, app in (("landreeve", agent), ("landreeve-hub", hub)):
        yield from _walk(name, typer.main.get_command(app))


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, str]]:
    children = getattr(command, "commands", {})
    if not children:
        yield path, (command.help or "").strip().split("\n")[0]
    for name, child in sorted(children.items()):
        yield from _walk(f"{path} {name}", child)


def pages() -> dict[str, str]:
    """The reference pages by file name."""
    return {"reference-settings.md": _settings_page(), "reference-commands.md": _commands_page()}


def _settings_page() -> str:
    lines = ["# Settings", "", "Made from the code by `python docs/reference.py`."]
    lines += ["", "Layers, later over earlier: defaults, files, environment (`LANDREEVE_SECTION__KEY`), flags."]
    lines += ["`landreeve config explain KEY` says where a value comes from.", ""]
    before = ""
    for program, field in settings():
        if program != before:
            lines += ["", f"## {program}", "", "| key | default | meaning |", "|---|---|---|"]
            before = program
        lines.append(f"| `{field.key}` | `{field.default!r}` | {field.help.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _commands_page() -> str:
    lines = ["# Commands", "", "Made from the code by `python docs/reference.py`. Every command has `--help`.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| `{path}` | {text} |" for path, text in commands()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page, content in pages().items():
        (HERE / page).write_text(content)
