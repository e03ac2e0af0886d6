"""``landreeve``: the command line of a box."""

import sys
from typing import Any


def main() -> None:
    """Run the command line; the version and a plain run go before anything that they do not need is imported."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from landreeve_agent.version import agent_version

        sys.stdout.write(f"landreeve {agent_version()}\n")
        return
    from landreeve_agent.commands.running import plain_run, run_site

    plain = plain_run(sys.argv[1:])
    if plain is not None:
        run_site(*plain)
        return
    from landreeve_agent.commands.cli import app

    app()


def __getattr__(name: str) -> Any:
    if name == "app":
        from landreeve_agent.commands.cli import app

        return app
    raise AttributeError(name)


if __name__ == "__main__":
    main()
