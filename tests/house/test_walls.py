"""The walls of the house, held by tests: arrows, purity, cycles, processes, sizes, names."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core/landreeve", "agent/landreeve_agent", "hub/landreeve_hub", "models/landreeve_models")
ML_RUNTIMES = {"onnxruntime", "openvino", "torch", "sklearn", "onnx", "skl2onnx", "nncf"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_arrows_point_down_and_pure_rooms_stay_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def test_every_package_init_holds_a_docstring_and_nothing_else() -> None:
    wrong = []
    for path in sources():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            if len(body) != 1 or ast.get_docstring(ast.parse(path.read_text())) is None:
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports when it is imported (not inside functions or for typing only)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in known}


def test_no_import_cycles() -> None:
    files = {module_of(path): path for path in sources()}
    graph = {name: imports_of(path, set(files)) - {name} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail("import cycle: " + " → ".join((*trail[trail.index(name) :], name)))
        if name not in done:
            for target in sorted(graph[name]):
                # A package's docstring-only __init__ imports nothing, so an ancestor is no step of a cycle.
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc", "manager_base"])
def test_no_room_without_a_purpose(word: str) -> None:
    assert [p for p in sources() if word in p.with_suffix("").parts] == []


def test_files_and_functions_stay_small() -> None:
    """A longer function carries its reason: a comment with the word 'long' on its first line."""
    wrong = []
    for path in sources():
        text = path.read_text()
        lines = text.splitlines()
        if len(lines) > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {len(lines)} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES and "long:" not in lines[node.lineno - 1]:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert wrong == []


def test_every_module_imports() -> None:
    """Every room of agent, hub, core and models can be entered alone."""
    broken = []
    for path in sources():
        name = module_of(path)
        if "migrations" in name or name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            broken.append(f"{name}: {error}")
    assert broken == []


SUPERVISOR_MODULES = ("landreeve_agent.app", "landreeve_agent.console.server", "landreeve_agent.serving.supervise")


def test_the_supervisor_process_imports_no_ml_runtime() -> None:
    """In a real, fresh process: everything the supervisor is built from, then its loaded modules."""
    program = f"import sys, json, {', '.join(SUPERVISOR_MODULES)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & ML_RUNTIMES == set()


@pytest.mark.parametrize("module", ["landreeve_agent", "landreeve_hub"])
def test_asking_for_the_version_loads_no_web_framework(module: str) -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['x', '--version']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as left:\n"
        "    assert left.code in (0, None), left.code\n"
        "heavy = {'fastapi', 'sqlalchemy', 'numpy', 'paho', 'tuf'} & set(sys.modules)\n"
        "print('loaded:', *sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    version, _, loaded = done.stdout.partition("loaded:")
    assert "0.1" in version
    assert loaded.strip() == ""
