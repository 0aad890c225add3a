"""The console in a real browser: the whole way of a customer, the keyboard alone, both themes, two widths, axe-core."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from tests.conftest import IS_CI, missing
from tests.console.house import OPERATOR_PAGES, PAGES, PASSWORD

if not IS_CI:
    pytest.importorskip("playwright")
from playwright.sync_api import Locator

from tests.console.browser.browsing import (
    AXE,
    SIZES,
    THEMES,
    Theme,
    Visit,
    browser_page,
    console_server,
    write_adapter,
)
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.long
MOST_STOPS = 80
"""Presses of Tab from one control of a page to any other."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    if shutil.which("chromium") is None:
        missing("apt-get install chromium")
    with console_server(tmp_path_factory.mktemp("console")) as found:
        yield found


def give_login(url: str, key: str) -> None:
    """Give the operator the password of the tests."""
    headers = {"authorization": f"Bearer {key}"}
    reply = httpx2.put(f"{url}/v1/account/login", json={"password": PASSWORD}, headers=headers, timeout=PATIENCE_S)
    reply.raise_for_status()


def test_a_customer_signs_up_uploads_asks_and_sees_usage_and_invoice(server: tuple[str, str], tmp_path: Path) -> None:
    with browser_page(server[0]) as visit:
        page = visit.page
        visit.sign_up("walker")
        assert page.get_by_label("Your first key").input_value().startswith("pb_")
        visit.upload("triage", "", tmp_path / "adapter")
        page.get_by_text("No tensor was left out").wait_for()
        visit.ask("SAY:good morning")
        page.get_by_role("button", name="Stop").wait_for(state="hidden")
        assert page.locator("#left .answer").inner_text() == "good morning"
        told = _until_usage(visit)
        visit.go("/billing")
        page.locator("tbody a[href*='/invoices/']").first.click()
        page.wait_for_url("**/billing/invoices/*")
        lines = page.locator("#invoice tbody tr").all()
        assert [line.locator("td").first.inner_text() for line in lines] == ["–", "walker/triage/1"]
        assert sum(int(line.locator("td").nth(1).inner_text()) for line in lines) == int(told)
        assert visit.faults == []


def test_a_version_is_promoted_by_questions(server: tuple[str, str], tmp_path: Path) -> None:
    give_login(*server)
    with browser_page(server[0]) as visit:
        page = visit.page
        visit.sign_in("operator")
        for version, alias in ((1, "prod"), (2, "")):
            visit.upload("judged", alias, tmp_path / "adapter", version=version)
        visit.go("/adapters/operator/judged/promotions")
        page.get_by_role("textbox", name="Questions").fill('{"prompt": "x", "expected": ["Hello", "from"]}')
        page.get_by_role("combobox", name="A reply is right if").select_option("contains")
        page.get_by_role("textbox", name="Guarded aliases").fill("prod")
        page.get_by_role("button", name="Attach the questions").click()
        page.get_by_text("1 questions to each version").wait_for()
        page.get_by_role("combobox", name="Version", exact=True).select_option("2")
        page.get_by_role("button", name="Ask and promote").click()
        page.locator("#runs .tag", has_text="promoted").wait_for()  # the part of the page follows by itself
        assert page.locator("#runs tbody tr").first.locator("td").nth(2).inner_text() == "1 of 1"
        visit.go("/adapters/operator/judged")
        assert page.locator("tbody tr", has_text="prod").first.locator("th").inner_text() == "2"
        assert visit.faults == []


def _until_usage(visit: Visit) -> str:
    """Wait until the records of the requests are booked; returns the number of requests that the page shows."""
    for _ in range(1_200):
        visit.go("/usage")
        foot = visit.page.locator("#usage tfoot td")
        if foot.count() and foot.first.inner_text() == "2":
            return "2"
        visit.page.wait_for_timeout(50)
    raise AssertionError("the usage of two requests did not arrive")


def test_the_keyboard_alone_leads_from_the_sign_up_to_the_invoice(server: tuple[str, str], tmp_path: Path) -> None:
    with browser_page(server[0]) as visit:
        page, keyboard = visit.page, visit.page.keyboard
        visit.go("/sign-up")
        page.locator("input[name=tenant]:focus").wait_for()
        for text in ("typist", "", "", PASSWORD, PASSWORD):
            keyboard.type(text)
            keyboard.press("Tab")
        keyboard.press("Enter")
        page.get_by_label("Your first key").wait_for()
        _open(visit, "Adapters")
        _tab_to(visit, page.get_by_label("Adapter", exact=True))
        keyboard.type("triage")
        _tab_to(visit, page.get_by_label("Files"))
        with page.expect_file_chooser() as chooser:
            keyboard.press("Enter")
        chooser.value.set_files(write_adapter(tmp_path / "adapter"))
        _press(visit, page.get_by_role("button", name="Upload"))
        page.wait_for_url("**/console/adapters/*/triage/1")
        _open(visit, "Playground")
        _tab_to(visit, page.get_by_label("Prompt"))
        keyboard.press("Control+A")
        keyboard.type("SAY:good morning")
        _press(visit, page.get_by_role("button", name="Ask"))
        page.locator(".facts", has_text="tokens").nth(1).wait_for()
        assert page.locator("#left .answer").inner_text() == "good morning"
        _until_usage(visit)
        _open(visit, "Billing")
        _press(visit, page.locator("tbody a[href*='/invoices/']").first)
        page.wait_for_url("**/billing/invoices/*")
        assert page.locator("#invoice tbody tr").count() == 2
        assert visit.faults == []


def test_the_keyboard_skips_the_links_and_opens_and_leaves_a_question(server: tuple[str, str]) -> None:
    give_login(*server)
    with browser_page(server[0]) as visit:
        page, keyboard = visit.page, visit.page.keyboard
        visit.sign_in("operator")
        visit.go("/keys")
        keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        keyboard.press("Enter")
        _press(visit, page.locator("details.confirm summary").first)
        page.locator("details.confirm[open]").wait_for()
        keyboard.press("Escape")
        page.locator("details.confirm[open]").wait_for(state="detached")
        assert visit.faults == []


def _tab_to(visit: Visit, target: Locator) -> None:
    """Press Tab until the target has the focus."""
    for _ in range(MOST_STOPS):
        visit.page.keyboard.press("Tab")
        if target.evaluate("each => each === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {target}")


def _press(visit: Visit, target: Locator) -> None:
    _tab_to(visit, target)
    visit.page.keyboard.press("Enter")


def _open(visit: Visit, name: str) -> None:
    """Open a page by its link in the console's navigation."""
    _press(visit, visit.page.get_by_role("navigation", name="Console").get_by_role("link", name=name, exact=True))
    visit.page.get_by_role("heading", level=1, name=name, exact=True).wait_for()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_every_page_fits_and_every_reader_can_use_it(
    server: tuple[str, str], theme: Theme, size: tuple[int, int], tmp_path: Path
) -> None:
    if not AXE.is_file():
        missing("make .venvs/axe-core/installed")
    url, key = server
    headers = {"authorization": f"Bearer {key}"}
    give_login(url, key)
    httpx2.post(f"{url}/admin/tenants", json={"id": "acme"}, headers=headers, timeout=PATIENCE_S)
    code = f"look-{theme}-{size[0]}"
    with browser_page(url, size=size, theme=theme) as visit:
        found: dict[str, object] = {}
        for path in ("/sign-in", "/sign-up", "/new-password"):
            visit.go(path)
            found[path] = (visit.violations(), visit.overflow())
        owner, repo = (code, "triage") if theme == "light" else ("operator", f"triage-{size[0]}")
        if owner == code:  # a server lets few strangers sign up in an hour
            visit.sign_up(code)
            visit.page.get_by_label("Your first key").wait_for()
            found["welcome"] = (visit.violations(), visit.overflow())
        else:
            visit.sign_in(owner)
        visit.upload(repo, "prod", tmp_path / "adapter")
        month = f"{datetime.now(UTC):%Y-%m}"
        adapter = f"/adapters/{owner}/{repo}"
        for path in (
            adapter,
            f"{adapter}/1",
            f"{adapter}/aliases/prod",
            f"{adapter}/promotions",
            f"/billing/invoices/{month}",
        ):
            visit.go(path)
            found[path] = (visit.violations(), visit.overflow())
        visit.page.context.clear_cookies()
        visit.sign_in("operator")
        draft = {"tenant": f"bill-{code}", "month": month}
        httpx2.post(
            f"{url}/admin/tenants", json={"id": draft["tenant"]}, headers=headers, timeout=PATIENCE_S
        ).raise_for_status()
        made = (
            httpx2.post(f"{url}/admin/billing/invoices", json=draft, headers=headers, timeout=PATIENCE_S)
            .raise_for_status()
            .json()
        )
        for path in (*PAGES.values(), *OPERATOR_PAGES.values(), f"/operator/invoices/{made['id']}"):
            visit.go(path)
            found[path] = (visit.violations(), visit.overflow())
        assert {path: result for path, result in found.items() if result != ([], 0)} == {}
        assert visit.faults == []


def test_a_filter_replaces_the_report_alone_and_an_ended_session_leads_to_the_sign_in(server: tuple[str, str]) -> None:
    with browser_page(server[0]) as visit:
        page = visit.page
        visit.sign_up("filterer")
        visit.go("/usage")
        page.evaluate("window.isSame = true")
        page.get_by_label("adapter", exact=True).click()
        page.wait_for_url("**by=adapter**")
        page.get_by_text("manylora usage --by day,adapter").wait_for()
        page.locator("input[name=from]").fill("2026-01-01")
        page.locator("input[name=from]").blur()
        page.locator("#report .lead", has_text="2026-01-01").wait_for()
        assert page.evaluate("window.isSame") is True, "the page was not loaded again"
        page.context.clear_cookies(name="manylora_session")
        # The click alone: `check` would look at the box again, which the sign-in page has not.
        page.get_by_label("key", exact=True).click()
        page.wait_for_url("**/sign-in**")
        assert visit.faults == []
