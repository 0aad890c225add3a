"""A real browser over a real server with the fake engine, for the tests of the console and for its screenshots."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from tests.console.house import PASSWORD
from tests.control.uploading import PLAIN, base_settings
from tests.server.app.test_server_process import forked_server
from tests.server.tiny_tokenizer import VOCAB_SIZE
from tests.support.paths import ROOT
from tests.support.serving import READS

AXE = ROOT / ".venvs" / "axe-core" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
PATIENCE_MS = 120_000
"""The time for which a page may be slow: machines of continuous integration run two files at once."""
SIZES = ((1440, 900), (360, 740))
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, Theme] = ("light", "dark")
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@dataclass
class Visit:
    """One page of the browser. `faults`: what its console and its scripts complained of."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def note(self, told: ConsoleMessage) -> None:
        if told.type == "error":
            self.faults.append(told.text)

    def go(self, path: str) -> None:
        self.page.goto(f"{self.url}/console{path}")

    def sign_up(self, tenant: str) -> None:
        self.go("/sign-up")
        self.page.get_by_label("Tenant").fill(tenant)
        self.page.get_by_label("Password", exact=False).first.fill(PASSWORD)
        self.page.get_by_label("Password again").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign up").click()

    def sign_in(self, tenant: str) -> None:
        self.go("/sign-in")
        self.page.get_by_label("Tenant").fill(tenant)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/console")

    def ask(self, prompt: str, *, right: str = "") -> None:
        """Ask the base and another model; without a name the first of the others."""
        self.go("/playground")
        if right:
            self.page.locator("select[name=right]").select_option(right)
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.get_by_role("button", name="Ask").click()
        self.page.locator(".facts", has_text="tokens").nth(1).wait_for()

    def upload(self, repo: str, alias: str, folder: Path, *, version: int = 1) -> None:
        """Upload an adapter, and wait for the page of its version."""
        self.go("/adapters")
        self.page.get_by_label("Adapter", exact=True).fill(repo)
        self.page.get_by_label("Alias").fill(alias)
        self.page.get_by_label("Files").set_input_files(write_adapter(folder))
        self.page.get_by_role("button", name="Upload").click()
        self.page.wait_for_url(f"**/console/adapters/*/{repo}/{version}")

    def violations(self) -> list[str]:
        """Return what axe-core finds against WCAG A and AA on this page."""
        found = self.page.evaluate(
            f"async () => {{ {AXE.read_text(encoding='utf-8')};"
            f" return (await axe.run(document, {{runOnly: {json.dumps(LEVELS)}}})).violations"
            " .map(v => v.id + ': ' + v.nodes.map(n => n.target + ' ' + n.failureSummary).join('; ')) }"
        )
        return [str(each) for each in found]

    def overflow(self) -> int:
        """Return the pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def console_server(folder: Path, *more: str) -> Iterator[tuple[str, str]]:
    """A server with keys, open sign-up and the fake engine: its address, and the operator's key of a first start."""
    base = base_settings(folder)["model.base"]
    file = Path(base) / "config.json"
    shape = json.loads(file.read_text(encoding="utf-8")) | {"vocab_size": VOCAB_SIZE}  # of the fake engine's tokenizer
    file.write_text(json.dumps(shape), encoding="utf-8")
    uploads = f"adapters.registry_dir={base}/control/uploads"  # the command sets it where it hosts a control plane
    settings = (
        "server.auth=on",
        "control.signup_open=true",
        "control.free_bases=tiny",
        "adapters.hub_endpoint=",
        READS,
        uploads,
        *more,
    )
    with forked_server(Path(base), *settings) as (_, client):
        key = "".join((Path(base) / "printed").read_text(encoding="utf-8").partition("ADMIN ")[2].split()[:1])
        yield str(client.base_url).rstrip("/"), key


@contextmanager
def browser_page(url: str, *, size: tuple[int, int] = SIZES[0], theme: Theme = "light") -> Iterator[Visit]:
    """A page of Debian's chromium without cookies."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(ARGUMENTS), timeout=PATIENCE_MS
        )
        context: Any = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, bypass_csp=False
        )
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(context.new_page(), url)
        visit.page.on("console", visit.note)
        visit.page.on("pageerror", lambda error: visit.faults.append(str(error)))
        try:
            yield visit
        finally:
            browser.close()


def write_adapter(folder: Path) -> list[str]:
    """Write an adapter's files; returns their paths."""
    files = {"adapter_config.json": PLAIN.config, "adapter_model.safetensors": PLAIN.weights}
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in files]
