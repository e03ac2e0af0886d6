"""A plain ``landreeve run`` goes without the command line's library; anything else is left to it."""

import subprocess
import sys
from pathlib import Path

import pytest
from landreeve_agent.commands.running import plain_run


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run"], (None, [])),
        (["--state", "/srv/a", "run"], (Path("/srv/a"), [])),
        (["run", "--set", "console.port=0", "--set=serving.port=1"], (None, ["console.port=0", "serving.port=1"])),
        (["run", "--set", "wrong"], (None, ["wrong"])),  # refused by name in both ways
    ],
)
def test_a_plain_run_is_understood(words: list[str], meant: object) -> None:
    assert plain_run(words) == meant


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["run", "--help"],
        ["run", "--set"],
        ["run", "--set", "--help"],
        ["--state", "run"],
        ["--state", "--version", "run"],
        ["status"],
        ["run", "now"],
    ],
)
def test_anything_else_is_the_full_command_lines(words: list[str]) -> None:
    assert plain_run(words) is None


def test_the_supervisor_does_not_load_the_command_lines_library() -> None:
    program = (
        "import sys\nfrom landreeve_agent import lean\nfrom landreeve_agent.commands import running\n"
        "lean.import_without('sqlite_utils', 'pandas', 'numpy')\nimport landreeve_agent.app\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'typer', 'numpy', 'onnxruntime'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
