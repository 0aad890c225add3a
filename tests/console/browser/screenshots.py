"""Screenshots of the console's pages: `make screenshots` writes them to `docs/console/`."""

import tempfile
from pathlib import Path

import httpx2

from tests.console.browser.browsing import (
    SIZES,
    THEMES,
    Visit,
    browser_page,
    console_server,
)
from tests.console.house import OPERATOR_PAGES, PAGES, PASSWORD
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "console"
NARROW = ("keys",)
"""Pages that are also shown at the width of a telephone, in the dark theme."""
KEPT = {"overview", "usage", "fleet", *(f"{name}-360-dark" for name in NARROW)}
"""Pages whose pictures the documentation has, beside those that `live` takes."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, console_server(Path(folder)) as (url, key):
        headers = {"authorization": f"Bearer {key}"}
        httpx2.put(f"{url}/v1/account/login", json={"password": PASSWORD}, headers=headers).raise_for_status()
        with browser_page(url) as visit:
            live(visit, Path(folder))
            shoot(visit, PAGES)
        with browser_page(url) as visit:
            visit.sign_in("operator")
            shoot(visit, OPERATOR_PAGES)
        with browser_page(url, size=SIZES[1], theme=THEMES[1]) as visit:
            visit.sign_in("acme")
            shoot(visit, {f"{name}-360-dark": PAGES[name] for name in NARROW})


def live(visit: Visit, folder: Path) -> None:
    """Do what a customer does, so that the pages have something to show."""
    visit.sign_up("acme")
    visit.upload("triage", "prod", folder / "adapter")
    visit.page.screenshot(path=FOLDER / "version.png")
    visit.ask("SAY:The sky is blue because air scatters blue light most.")
    visit.page.screenshot(path=FOLDER / "playground.png")
    visit.page.wait_for_timeout(3000)


def shoot(visit: Visit, pages: dict[str, str]) -> None:
    """Take a picture of each page that is kept, but of the playground, which `live` has taken."""
    for name, path in pages.items():
        if name in KEPT:
            visit.go(path)
            visit.page.wait_for_timeout(2500 if name == "fleet" else 100)
            visit.page.screenshot(path=FOLDER / f"{name.replace('/', '-')}.png")


if __name__ == "__main__":
    main()
