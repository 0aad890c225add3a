"""Promotions by questions on the console's pages: attach, run, report, remove."""

import json
from pathlib import Path

import pytest

from tests.console.house import ConsoleHouse, in_console, text_of
from tests.console.test_pages import upload
from tests.control.uploading import base_settings

QUESTIONS = "\n".join(json.dumps({"prompt": f"{n} + {n} =", "expected": str(2 * n)}) for n in range(3))


@pytest.mark.long
@pytest.mark.usefixtures("checks_in_process")
def test_questions_are_attached_put_and_removed(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, page = house.new_browser(), "/console/adapters/acme/triage/promotions"
        await browser.sign_up("acme")
        await upload(browser, "triage", "prod")
        await upload(browser, "triage")
        assert "No questions yet" in text_of((await browser.get(page)).text)
        form = {"questions": QUESTIONS, "metric": "contains", "guards": "prod, beta", "max_tokens": ""}
        for wrong in ({"questions": "{}"}, {"max_tokens": "many"}, {"metric": "vibes"}):
            refused = await browser.post(f"{page}/questions", form | wrong, page=page)
            assert refused.status_code == 400, wrong
            assert "prod, beta" in refused.text, "the form keeps what was typed"
        assert (await browser.post(f"{page}/questions", form, page=page)).status_code == 303
        shown = text_of((await browser.get(page)).text)
        assert "3 questions to each version" in shown
        assert "No promotion yet" in shown
        repository = "/console/adapters/acme/triage"
        guarded = await browser.post(f"{repository}/aliases", {"alias": "prod", "version": "2"}, page=repository)
        assert guarded.status_code == 400
        begun = await browser.post(page, {"alias": "prod", "version": "2"}, page=page)
        assert begun.status_code == 303, text_of(begun.text)
        running = await browser.get(page)
        assert "running" in text_of(running.text)
        assert 'hx-select="#runs"' in running.text
        removed = await browser.post(f"{page}/questions/remove", {}, page=page)
        assert removed.status_code == 303
        assert "Replace the questions" not in (await browser.get(page)).text
        large = form | {"questions": "\n".join([QUESTIONS] * 600)}  # more bytes than other forms may have
        refused = await browser.post(f"{page}/questions", large, page=page)
        assert "1 to 1000 lines" in text_of(refused.text).replace(",", "")

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))
