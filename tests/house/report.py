"""Print the house's sizes: lines per file and function, and mock density of the tests."""

import ast
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core/landreeve", "models/landreeve_models", "agent/landreeve_agent", "hub/landreeve_hub")
MOCK = re.compile(r"\b(Mock|MagicMock|AsyncMock|patch|mocker|monkeypatch)\b")


def functions(path: Path) -> list[int]:
    """Lines of each function in a file, its docstring not counted."""
    sizes = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            sizes.append(lines)
    return sizes


def percentile(values: list[int], share: float) -> int:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def spread(values: list[int]) -> str:
    return f"{int(statistics.median(values or [0]))}/{percentile(values, 0.9)}/{max(values, default=0)}"


def main() -> None:
    rows = []
    every: list[int] = []
    for package in PACKAGES:
        files = [p for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"]
        lines = [len(p.read_text().splitlines()) for p in files]
        sizes = [n for p in files for n in functions(p)]
        every += sizes
        rows.append((package, len(files), sum(lines), lines, sizes))
    print(f"{'package':28} files  lines  file med/p90/max   function med/p90/max")
    for package, count, total, lines, sizes in rows:
        print(f"{package:28} {count:5} {total:6}  {spread(lines):>16}   {spread(sizes):>16}")
    tests = list((ROOT / "tests").rglob("*.py"))
    mocks = sum(1 for p in tests for line in p.read_text().splitlines() if MOCK.search(line) and "import" not in line)
    cases = sum(len(re.findall(r"^\s*(?:async )?def test_", p.read_text(), re.MULTILINE)) for p in tests)
    figures = {
        "function_median": statistics.median(every),
        "function_p90": percentile(every, 0.9),
        "tests": cases,
        "mock_lines_per_100_tests": round(100 * mocks / max(1, cases), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
