"""What the scripts of pages do: the facts and programs of the playground, an upload after a break, the plots."""

import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.money import NANO
from tests.conftest import IS_CI, missing
from tests.console.house import PASSWORD

if not IS_CI:
    pytest.importorskip("playwright")
from tests.console.browser.browsing import Visit, browser_page, console_server, write_adapter
from tests.console.browser.receiver import WORD, receiving
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.long
PROMPT = """SAY:it's "fine" \\ é 😀 $HOME `x`"""
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"ok": {"type": "boolean", "default": True, "x": None}}}
CLIENTS = {"openai": "openai", "lorax": "lorax"}
"""Forms of programs in Python, with the environment of each client."""
PRICE = {"base": "tiny", "input_nanousd": 200, "cached_input_nanousd": 50, "output_nanousd": 700}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    if shutil.which("chromium") is None:
        missing("apt-get install chromium")
    folder = tmp_path_factory.mktemp("console")
    with console_server(folder) as (url, admin):  # a base needs a price before it is served for money
        called(url, "/admin/prices", admin, PRICE)
    with console_server(folder, "control.free_bases=") as (url, _):
        yield url, admin


def called(url: str, path: str, key: str, body: object = None) -> Any:
    """Call the server's API with a key; a body is sent with POST."""
    method, headers = "GET" if body is None else "POST", {"authorization": f"Bearer {key}"}
    reply = httpx2.request(method, url + path, json=body, headers=headers, timeout=PATIENCE_S)
    return reply.raise_for_status().json()


def first_key(visit: Visit, tenant: str) -> str:
    visit.sign_up(tenant)
    return str(visit.page.get_by_label("Your first key").input_value())


def test_the_playground_shows_tier_load_time_tokens_and_the_price_that_the_ledger_has(
    server: tuple[str, str], tmp_path: Path
) -> None:
    url, _ = server
    with browser_page(url) as visit:
        key = first_key(visit, "payer")
        visit.upload("triage", "", tmp_path / "adapter")
        visit.ask("SAY:good morning", right="triage/1")
        told = [visit.page.locator(f"#{side} .facts").inner_text() for side in ("left", "right")]
        assert visit.faults == []
    assert not re.search("tier|loaded", told[0]), "the base has no tier"
    assert re.match(r"tier \w+ · loaded in \d+ ms · \d+ ms · \d+ \+ \d+ tokens · \$0\.\d+$", told[1]), told
    rows: list[dict[str, Any]] = []

    def are_booked() -> bool:
        rows[:] = called(url, "/v1/account/ledger", key)["rows"]
        return len(rows) == 2

    wait_for(are_booked)
    by_adapter = {row["adapter"] or "": row for row in rows}
    for text, adapter in zip(told, ("", "triage/1"), strict=True):
        row = by_adapter[adapter]
        prompt, completion, dollars = re.findall(r"(\d+) \+ (\d+) tokens · \$([\d.]+)", text)[0]
        assert [int(prompt), int(completion)] == [row["charged_prompt_tokens"], row["charged_completion_tokens"]]
        assert round(float(dollars) * NANO) == row["cost_nanousd"] > 0


def test_a_program_of_the_playground_runs_and_sends_its_request(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    with browser_page(url) as visit, receiving() as receiver:
        page = visit.page
        key = first_key(visit, "programmer")
        visit.upload("triage", "", tmp_path / "adapter")
        visit.go("/playground")
        page.get_by_label("Prompt").fill(PROMPT)
        model = "triage/1"
        page.locator("select[name=right]").select_option(model)
        for heat, schema in (("0", None), ("0.7", None), ("1", SCHEMA)):
            page.get_by_label("Temperature").fill(heat)
            page.locator("textarea[name=schema]").evaluate(
                "(area, text) => { area.closest('details').open = true; area.value = text; "
                "area.dispatchEvent(new Event('input', {bubbles: true})); }",
                "" if schema is None else json.dumps(schema),
            )
            chat: dict[str, Any] = {
                "model": model,
                "messages": [{"role": "user", "content": PROMPT}],
                "temperature": float(heat),
                "max_tokens": 64,
            }
            lorax: dict[str, Any] = {"adapter_id": model, "max_new_tokens": 64}
            if heat != "0":
                lorax |= {"do_sample": True, "temperature": float(heat)}
            if schema is not None:
                chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
                lorax["response_format"] = {"type": "json_object", "schema": schema}
            for form in ("curl", "openai", "lorax"):
                page.get_by_label("Form").select_option(form)
                program = page.locator("#program").inner_text()
                assert ran(program.replace(url, receiver.url), form, key).strip() == WORD
                [sent] = receiver.take()
                if form == "lorax":
                    given = {name: sent["parameters"].get(name) for name in lorax}
                    assert (sent["inputs"], given) == (PROMPT, lorax)
                    assert heat != "0" or sent["parameters"].get("temperature") is None
                else:
                    assert {name: sent[name] for name in chat} == chat, form
                if schema is None:
                    assert PROMPT.removeprefix("SAY:") in ran(program, form, key), form
        assert visit.faults == []


def ran(program: str, form: str, key: str) -> str:
    """Run a program as a visitor would; returns what it printed, of curl the text of the reply."""
    words = ["bash", "-c", program]
    if form in CLIENTS:
        python = ROOT / ".venvs" / CLIENTS[form] / "bin" / "python"
        if not python.exists():
            missing(f"no environment for the client {form}: `make .venvs/{form}/installed` creates it")
        words = [str(python), "-c", program]
    environ = {"PATH": os.environ["PATH"], "MANYLORA_KEY": key, "HOME": "/nonexistent", "PYTHONUTF8": "1"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, (program, done.stdout, done.stderr)
    if form == "curl":
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])
    return done.stdout


def test_a_schema_that_is_no_json_is_told_and_sends_nothing(server: tuple[str, str]) -> None:
    with browser_page(server[0]) as visit:
        first_key(visit, "mistaken")
        visit.go("/playground")
        page = visit.page
        page.get_by_text("Schema of the answer").click()
        page.get_by_label("JSON Schema").fill("{")
        page.get_by_text("the schema is not JSON").wait_for()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_role("button", name="Ask").click()
        page.locator("#left .facts", has_text="JSON").wait_for()
        assert asked == []


def test_dropped_files_are_uploaded_and_an_upload_goes_on_where_it_stopped(
    server: tuple[str, str], tmp_path: Path
) -> None:
    with browser_page(server[0]) as visit:
        page = visit.page
        first_key(visit, "dropper")
        page.add_init_script("const later = setTimeout; window.setTimeout = (act, ms) => later(act, ms / 100);")
        visit.go("/adapters")
        calls: list[tuple[str, str]] = []
        page.on(
            "request", lambda request: calls.append((request.method, request.url.rpartition("/")[2].partition("?")[0]))
        )
        weights = re.compile(r"/adapter_model\.safetensors\?")
        page.route(weights, lambda route: route.abort() if route.request.method == "PUT" else route.continue_())
        files = [Path(name) for name in write_adapter(tmp_path / "adapter")]
        dropped = page.evaluate_handle(
            """(files) => { const all = new DataTransfer(); for (const [name, text] of files) all.items.add(
            new File([Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0))], name)); return all; }""",
            [[file.name, b64encode(file.read_bytes()).decode()] for file in files],
        )
        page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
        page.get_by_label("Adapter", exact=True).fill("dropped")
        page.get_by_role("button", name="Upload").click()
        page.get_by_text("A further try goes on where this one stopped.").wait_for()
        page.unroute(weights)
        page.get_by_role("button", name="Upload").click()
        page.wait_for_url("**/console/adapters/dropper/dropped/1")
        page.get_by_text("No tensor was left out").wait_for()
        assert calls.count(("POST", "upload")) == 1, "one upload, begun once"
        assert calls.count(("PUT", "adapter_config.json")) == 1, "what had arrived is not sent again"


def test_the_fleet_plots_sequences_the_queue_and_tokens(server: tuple[str, str]) -> None:
    url, admin = server
    headers = {"authorization": f"Bearer {admin}"}
    login = httpx2.put(f"{url}/v1/account/login", json={"password": PASSWORD}, headers=headers, timeout=PATIENCE_S)
    login.raise_for_status()
    with browser_page(url) as visit:
        visit.sign_in("operator")
        visit.go("/operator/fleet")
        for name in ("in_flight", "waiting", "tokens"):
            visit.page.locator(f"[data-now={name}]", has_text=re.compile(r"^now \d")).wait_for()
            assert visit.page.locator(f"[data-plot={name}] canvas").count() == 1
        assert visit.faults == []
