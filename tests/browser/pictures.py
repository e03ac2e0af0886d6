"""Take the pictures of the README from running consoles.

``python tests/browser/pictures.py docs/images SITE_URL SITE_CODE HUB_URL HUB_CODE`` (codes: ``landreeve code``,
``landreeve-hub code``). The state of the pictures is the state of the demo: nothing is made up.
"""

import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright


def main(folder: Path, consoles: dict[str, tuple[str, str]]) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, (url, code) in consoles.items():
            state = sign_in(chromium, url, code)
            for theme in ("light", "dark"):
                take(chromium, url, state, theme, folder / f"{name}-{theme}.png")


def sign_in(chromium: Browser, url: str, code: str) -> Any:
    page = chromium.new_page()
    page.goto(f"{url}/login")
    page.get_by_label("One-time code").fill(code)
    page.get_by_role("button", name="Sign in", exact=True).first.click()
    page.wait_for_url(f"{url}/")
    return page.context.storage_state()


def take(chromium: Browser, url: str, state: Any, theme: str, file: Path) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, storage_state=state)
    context.add_cookies([{"name": "theme", "value": theme, "url": url}])
    page = context.new_page()
    page.goto(f"{url}/")
    page.locator("[data-state=live]").first.wait_for()
    page.wait_for_timeout(1500)  # the chart and the fonts have settled
    page.screenshot(path=file)
    context.close()


if __name__ == "__main__":
    target, site_url, site_code, hub_url, hub_code = sys.argv[1:6]
    main(Path(target), {"site": (site_url, site_code), "hub": (hub_url, hub_code)})
