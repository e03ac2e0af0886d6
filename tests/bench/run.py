"""Run every benchmark (tests/bench/bench_*.py), one after another.

Each prints a table and writes build/bench/NAME.json.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    failed = []
    for bench in sorted(HERE.glob("bench_*.py")):
        print(f"\n== {bench.stem.removeprefix('bench_')}", flush=True)
        if subprocess.run([sys.executable, str(bench)], check=False).returncode:
            failed.append(bench.name)
    for name in failed:
        print(f"did not finish: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
