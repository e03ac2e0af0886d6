"""Look at a console with made-up data: ``python tests/browser/dev.py site|hub [port]``."""

import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main(which: str, port: int) -> None:
    if which == "site":
        from fake_site import FakeSite as Fake
        from landreeve_agent.console import pages
    else:
        from fake_hub import FakeHub as Fake
        from landreeve_hub.console import pages
    fake = Fake()
    fake.open = True
    app = fake.app()
    pages.install(app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8800)
