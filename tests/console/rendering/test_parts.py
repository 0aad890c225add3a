"""Parts of pages that a script replaces: what it asks for, and what it gets where the session has ended."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

from manylora.console.rendering import static_files
from tests.console.house import ConsoleHouse, in_console
from tests.support.paths import ROOT

MOST_FIRST_LOAD = 150_000
OWN_FILES = {"console.css", "console.js", "mark.svg", "playground.js", "plots.js", "upload.js"}
PARTS = {"/console": "today", "/console/usage": "report"}


def test_a_part_of_a_page_is_in_the_whole_page_and_its_script_comes_from_this_server(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        for path, part in PARTS.items():
            page = (await browser.get(path, headers={"hx-request": "true"})).text
            assert f'id="{part}"' in page
            assert f'hx-select="#{part}"' in page
            assert "/console/static/htmx.min.js?v=" in page

    in_console(tmp_path, scenario)


def test_a_script_s_call_after_the_session_leads_the_whole_page_to_the_sign_in(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        reply = await house.new_browser().get("/console", headers={"hx-request": "true"})
        assert (reply.status_code, reply.content) == (204, b"")
        assert reply.headers["hx-redirect"].startswith("/console/sign-in?next=")

    in_console(tmp_path, scenario)


def test_all_files_together_are_a_small_first_load() -> None:
    assert sum(map(len, static_files().values())) < MOST_FIRST_LOAD


def test_each_file_of_another_project_has_its_version_licence_and_checksum_in_the_table() -> None:
    page = (ROOT / "docs" / "decisions" / "vendored-scripts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S*) ?\|.* \| `([\w.]+)` \| `([0-9a-f]{64})` \|", page, re.MULTILINE)
    found = {name: hashlib.sha256(body).hexdigest() for name, body in static_files().items() if name not in OWN_FILES}
    assert {name: digest for _, name, digest in rows} == found
    folder = files("manylora.console") / "static"
    for name in ("htmx", "uplot"):
        licence = (folder / f"{name}.LICENSE").read_text(encoding="utf-8")
        assert "Permission" in licence
        assert f"`{name}.LICENSE`" in page
    versions = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", page, re.MULTILINE))
    texts = {name: (folder / f"{name.lower()}.min.js").read_text(encoding="utf-8") for name in versions}
    assert {name for name, version in versions.items() if version in texts[name]} == {"htmx", "uPlot"}
