"""The commands of README and the pages, run line by line against a server: each succeeds, or is named here.

Each line gets a tenant of its own, with what the line speaks of: a repository of four versions, a key, a budget, an
invoice. A name of the page stands for these, such as `acme`, `triage` or KEY_ID.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from manylora.cli import app
from tests.cli.test_documented_commands import PAGES
from tests.console.browser.browsing import console_server, write_adapter
from tests.support.waiting import wait_for

_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(\.venv/bin/)?manylora [a-z]|curl ")
NOT_RUN = {
    r"manylora (serve|engine|cluster|bench|control --host)": "a start; tests/deploy, tests/cli/test_tutorial.py",
    r"manylora (generate|pull|doctor)": "a local verb with a base; tests/cli/test_tutorial.py, tests/cli/operate",
    r"manylora control (backup|restore|admin-key)": "on the machine of the database; tests/cli/test_control.py",
    r"manylora plan .*--tensor-parallel": "its exit code depends on the memory of the machine; tests/cli/test_plan.py",
    r"manylora migrate-from": "reads no server; tests/cli/catalogue/test_migrate_from.py",
    r"manylora webhooks retry": "a message is dead after days; tests/control/webhooks",
    r"manylora invoices credit": "a credit note is of usage of a month that is over; tests/control/invoicing",
    r"curl .*/deployments/v2/llms/mine": "a dedicated replica; tests/integration/deployments",
}
"""Commands that this file does not run, with the tests that do."""
OWN_PAGES = {"bases.md", "operating-adapters.md", "tutorial.md"}
"""Pages whose commands other tests run, with their outputs."""
TENANTS_OWN = re.compile(
    r"manylora (account|repos (?!.*--tenant|clear)|rollout|budgets|webhooks|limits show|prices ls|keys ls$"
    r"|usage --by day,adapter|invoice [0-9])"
)
"""Commands that a tenant gives with its own key; the operator's key gives the others."""


@dataclass
class House:
    """A server with keys and a fake engine."""

    url: str
    admin: str
    folder: Path
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, line: str, key: str) -> str:
        words = shlex.split(line, comments=True)[1:]
        surroundings = {"MANYLORA_URL": self.url, "MANYLORA_KEY": key, "COLUMNS": "200"}
        done = CliRunner().invoke(app, words, env=surroundings, input="y\n" * 3)
        assert done.exit_code == 0, (line, done.output)
        return done.stdout

    def ask(self, method: str, path: str, key: str, body: object = None) -> httpx2.Response:
        head = {"authorization": f"Bearer {key}"}
        reply = httpx2.request(method, self.url + path, json=body, headers=head, timeout=60)
        assert reply.is_success, (path, reply.text)
        return reply


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("pages")
    write_adapter(folder / "adapter")
    (folder / "held-out.jsonl").write_text('{"prompt": "SAY:x", "expected": "x"}\n')
    with console_server(folder) as (url, admin), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = House(url, admin, folder)
        made.run("manylora tenants create globex", admin)
        made.run("manylora prices set Tiny-Base --input 0.5 --output 1.5", admin)
        yield made


def lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for block in _BLOCK.findall(text)]
    found = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in found if _COMMAND.match(line)]


def named(line: str) -> str | None:
    return next((reason for form, reason in NOT_RUN.items() if re.match(form, line)), None)


def test_each_command_that_is_not_run_stands_on_a_page() -> None:
    """A table of exceptions without use hides the next command of that form."""
    shown = [line for page in PAGES if page.name not in OWN_PAGES for line in lines(page)]
    unused = [form for form in NOT_RUN if not any(re.match(form, line) for line in shown)]
    assert unused == []


@pytest.mark.long  # a minute: a tenant with uploads for each of the lines
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN_PAGES], ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_it_says(house: House, page: Path) -> None:
    for line in lines(page):
        if named(line) is None:
            run_line(house, line)


def run_line(house: House, line: str) -> None:
    """Make a tenant with all that the line names, and run the line with the key of its giver."""
    tenant = f"t{next(house.numbers)}"
    key = "" if re.search(r"tenants create|/signup", line) else make_tenant(house, tenant)
    if "triage" in line and "repos create" not in line:
        make_repository(house, tenant, key)
    own = line
    for word, text in names(house, line, tenant, key).items():
        own = re.sub(rf"(?<![\w/.-]){re.escape(word)}(?![\w-])", text, own)
    if "rollout promote" in line:
        house.run("manylora rollout questions triage held-out.jsonl --metric accuracy --guard prod", key)
    if "repos clear" in line:
        house.run(f"manylora tenants close {tenant}", house.admin)
    giver = key if TENANTS_OWN.match(line) else house.admin
    if line.startswith("curl"):
        shell = {
            "URL": house.url,
            "KEY": house.admin if "/admin/" in line else key,
            "ACME": key,
            "PATH": "/usr/bin:/bin",
        }
        asked = own.replace("curl ", "curl --fail-with-body ", 1)
        asked += "" if "Authorization" in line or "signup" in line else ' -H "Authorization: Bearer $ACME"'
        done = subprocess.run(["bash", "-c", asked], env=shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (own, done.stdout, done.stderr)
        return
    house.run(own, giver)


def make_tenant(house: House, tenant: str) -> str:
    return str(house.ask("POST", "/admin/tenants", house.admin, {"id": tenant}).json()["key"]["key"])


def make_repository(house: House, tenant: str, key: str) -> None:
    """Four versions, with an alias that has meant two of them."""
    house.run("manylora repos create triage", key)
    for _ in range(4):
        house.run(f"manylora repos upload triage {house.folder / 'adapter'}", key)
    for version in (3, 2):
        house.run(f"manylora repos alias triage prod {version}", key)


def names(house: House, line: str, tenant: str, key: str) -> dict[str, str]:
    """Return the text for each word of the pages that stands for something of a reader's own."""
    moment = datetime.now(UTC).replace(day=1)
    last = (moment - timedelta(days=40)).strftime("%Y-%m")
    found = {
        "acme": tenant,
        "SmolLM2-135M-Instruct": "Tiny-Base",
        "Zephyr-7b-beta": "Tiny-Base",
        "$ACME": key,
        "./out/triage": str(house.folder / "adapter"),
        "examples/adapters/support-triage": str(house.folder / "adapter"),
        "2026-09": last,
        "2026-11": last,
        "2026-11-20": f"{last}-20",
        "2026-11-01": f"{last}-01",
        "2026-12-05": moment.strftime("%Y-%m-%d"),
        "http://127.0.0.1:8080": house.url,
        "support-triage": "Tiny-Base",
        "catalogue.yaml": f"{tenant}.yaml",
    }
    if "KEY_ID" in line:
        body = {"name": "other", "scopes": ["infer"]}
        found["KEY_ID"] = house.ask("POST", f"/admin/tenants/{tenant}/keys", house.admin, body).json()["id"]
    if "BUDGET_ID" in line:
        house.run("manylora budgets set team 50", key)
        found["BUDGET_ID"] = house.ask("GET", "/v1/account/budgets", key).json()["budgets"][0]["id"]
    if "INVOICE_ID" in line:
        drafted = json.loads(house.run(f"manylora invoices draft {tenant} {last} --json", house.admin))
        found["INVOICE_ID"] = drafted["id"]
        if "finalise" not in line:
            house.run(f"manylora invoices finalise {drafted['id']}", house.admin)
    if "ROW" in line or "<row>" in line:
        found |= dict.fromkeys(("ROW", "<row>"), used_row(house, tenant, key)) | {"ticket-17": f"ticket-{tenant}"}
    if "apply" in line:
        house.run(f"manylora export -o {tenant}.yaml", house.admin)
    return found


def used_row(house: House, tenant: str, key: str) -> str:
    """Send a request, and return the id of its row once the ledger has it."""
    house.ask("POST", "/v1/completions", key, {"model": "Tiny-Base", "prompt": "SAY:" + "x" * 20 + " " * 200})
    found: list[str] = []

    def is_booked() -> bool:
        rows = house.ask("GET", f"/admin/ledger?tenant={tenant}", house.admin).json()["rows"]
        found.extend(row["id"] for row in rows)
        return bool(found)

    wait_for(is_booked)
    return found[0]
