"""Screenshots of the console's pages: `make screenshots` writes them to `docs/console/`."""

import tempfile
from datetime import UTC, datetime
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
from tests.support.waiting import PATIENCE_S

FOLDER = ROOT / "docs" / "console"
NARROW = ("keys",)
"""Pages that are also shown at the width of a telephone, in the dark theme."""
VISITORS = {"sign-in": "/sign-in", "sign-up": "/sign-up", "new-password": "/new-password"}
"""Pages before a sign-in."""
OF_ONE = {
    "repository": "/adapters/acme/triage",
    "alias": "/adapters/acme/triage/aliases/prod",
    "promotions": "/adapters/acme/triage/promotions",
}
"""Pages of the adapter that `live` uploads."""
TAKEN_LIVE = ("version", "playground")
"""Pages that `live` takes while they show what a customer has just done."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, console_server(Path(folder)) as (url, key):
        headers = {"authorization": f"Bearer {key}"}
        httpx2.put(
            f"{url}/v1/account/login", json={"password": PASSWORD}, headers=headers, timeout=PATIENCE_S
        ).raise_for_status()
        with browser_page(url) as visit:
            shoot(visit, VISITORS)
            live(visit, Path(folder))
            shoot(visit, PAGES | OF_ONE)
        month = datetime.now(UTC).strftime("%Y-%m")
        draft = httpx2.post(f"{url}/admin/billing/invoices", json={"tenant": "acme", "month": month}, headers=headers)
        invoice = draft.raise_for_status().json()["id"]
        with browser_page(url) as visit:
            visit.sign_in("operator")
            shoot(visit, OPERATOR_PAGES | {"invoice": f"/operator/invoices/{invoice}"})
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
    """Take a picture of each page, but of those that `live` has taken."""
    for name, path in pages.items():
        if name not in TAKEN_LIVE:
            visit.go(path)
            visit.page.wait_for_timeout(2500 if name == "fleet" else 100)
            visit.page.screenshot(path=FOLDER / picture_of(name))


def picture_of(page: str) -> str:
    """Return the file of a page's picture."""
    return f"{page.replace('/', '-')}.png"


if __name__ == "__main__":
    main()
