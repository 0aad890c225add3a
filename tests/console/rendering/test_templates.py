"""What all pages have in common: no script or style of their own, a small first load, empty states with a command."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import nodes

from manylora.cli import app
from manylora.console.rendering import CONTENT_POLICY, environment, static_files
from tests.cli.remote.verbs import command_of
from tests.cli.test_documented_commands import parse
from tests.console.house import OPERATOR_PAGES, PAGES, PASSWORD, ConsoleHouse, in_console
from tests.support.paths import ROOT

MOST_FIRST_LOAD = 150_000
COMMAND = 'aria-label="Command to type"'
OF_A_MONTH = {"month": "/billing/invoices/2023-11"}
NEVER_EMPTY = {"keys", "sign-in-settings", "tenants", "tenants/acme", "prices", "audit"}
"""Pages that have a row from the first start on: a key, a session, the operator and its acts, the shipped prices."""
WITHIN_A_PAGE = (r"<script(?![^>]*\ssrc=)", r"<style", r"\sstyle\s*=", r"\son\w+\s*=", r"\shx-on", r"javascript:")
"""What the content policy refuses to run or apply."""
TEMPLATES = ROOT / "src" / "manylora" / "console" / "templates"


def faults_of(page: str) -> list[str]:
    """The parts of a page that its content policy refuses."""
    return [found[0] for form in WITHIN_A_PAGE for found in re.finditer(form, page, re.IGNORECASE)]


def test_every_page_of_a_new_tenant_and_operator_is_small_inert_and_says_what_to_type(tmp_path: Path) -> None:
    sizes = {name: len(body) for name, body in static_files().items()}

    async def scenario(house: ConsoleHouse) -> None:
        browser, operator = house.new_browser(), house.new_browser()
        await browser.sign_up("acme")
        await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
        await operator.sign_in("operator")
        for visitor, pages in ((browser, PAGES | OF_A_MONTH), (operator, OPERATOR_PAGES)):
            for name, path in pages.items():
                reply = await visitor.get(f"/console{path}")
                assert (reply.status_code, faults_of(reply.text)) == (200, []), name
                assert reply.headers["content-security-policy"] == CONTENT_POLICY
                assert COMMAND in reply.text or name in NEVER_EMPTY, f"{name} has no command to type"
                named = {text.partition("?")[0] for text in re.findall(r'="/console/static/([^"]+)"', reply.text)}
                assert len(reply.content) + sum(sizes[each] for each in named) <= MOST_FIRST_LOAD, name

    in_console(tmp_path, scenario)


def test_no_template_has_a_script_or_a_style_of_its_own() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in TEMPLATES.glob("*.html")}
    assert {name: found for name, text in texts.items() if (found := faults_of(text))} == {}


@pytest.mark.parametrize(
    "wrong", ["<script>x</script>", "<p style='a'>", "<p onclick=x()>", '<a href="javascript:x">', "<p hx-on:click=x>"]
)
def test_a_script_or_a_style_of_a_page_is_found(wrong: str) -> None:
    assert len(faults_of(f"<main>{wrong}</main>")) == 1
    assert faults_of('<script src="/x.js" defer></script><p data-onward="1">one = 2</p>') == []


def empty_states() -> Iterator[tuple[str, str, str]]:
    """The template, the title and the command of each empty state, with `1` for each value of a page."""
    made = environment(static_files())
    for file in sorted(TEMPLATES.glob("*.html")):
        for call in made.parse(file.read_text(encoding="utf-8")).find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr) and call.node.attr == "empty":
                title, _, *command = call.args
                yield file.name, text_of(title), text_of(command[0]) if command else ""


def text_of(node: nodes.Node) -> str:
    if isinstance(node, nodes.Const):
        return str(node.value)
    return "".join(map(text_of, node.nodes)) if isinstance(node, nodes.Concat) else "1"


def test_each_empty_state_has_a_command_that_the_command_line_takes() -> None:
    found = list(empty_states())
    assert len(found) > 20
    for file, title, command in found:
        assert command, f"{file}: {title}"
        if command.startswith("manylora "):
            parse(command_of(app), "manylora", shlex.split(command)[1:], is_whole=True)
        else:
            assert command == "1" or command.startswith("curl -s 1"), f"{file}: {title}"


def test_each_other_command_of_a_template_is_one() -> None:
    texts = [file.read_text(encoding="utf-8") for file in sorted(TEMPLATES.glob("*.html"))]
    printed = [command for text in texts for command in re.findall(r"<code>(manylora [^<]+)</code>", text)]
    assert len(printed) >= 2
    for command in printed:
        parse(command_of(app), "manylora", shlex.split(command)[1:], is_whole=True)
