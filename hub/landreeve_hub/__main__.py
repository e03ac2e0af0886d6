"""``landreeve-hub``: the command line of the fleet's hub. Heavy imports wait until a command needs them."""

import sys
from typing import Any


def main() -> None:
    """Run the command line; the answer to ``--version`` imports nothing."""
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        sys.stdout.write(f"landreeve-hub {version('landreeve')}\n")
        return
    from landreeve_hub.commands.root import build

    build()()


def __getattr__(name: str) -> Any:
    if name == "app":
        from landreeve_hub.commands.root import build

        return build()
    raise AttributeError(name)


if __name__ == "__main__":
    main()
