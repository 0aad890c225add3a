"""What adapters say of text, at the edge: asked for once, used everywhere, asked for again when it has changed."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manylora.errors import AdapterSourceUnavailable
from manylora.models.text.adapter_text import AdapterText, AddedToken
from tests.server.conftest import House
from tests.server.tiny_tokenizer import EOS, VOCAB_SIZE

Run = Callable[..., None]
MESSAGES = [{"role": "user", "content": "hi"}]
CALL = AddedToken(id=VOCAB_SIZE, content="<call>")
TEXT = AdapterText(tokens=(CALL,), templates={"default": "{{ bos_token }}<call>{{ messages[0].content }}"})


async def chat(house: House, model: str, **more: Any) -> Any:  # the client's own reply
    return await house.post("/v1/chat/completions", {"model": model, "messages": MESSAGES, **more})


def test_an_adapters_text_is_asked_for_once(in_house: Run) -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            assert (await chat(house, "triage")).status_code == 200
        assert (await chat(house, "")).status_code == 200
        assert [ref.id for ref in house.engine.texts.asked] == ["triage"]

    in_house(scenario)


def test_prompts_stops_and_replies_use_it_on_every_route(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        digest = house.engine.texts.say("triage", TEXT, tmp_path)
        parameters = {"adapter_id": "triage", "stop": ["<call>"], "details": True}
        for path in ("/generate", "/", "/generate_stream"):
            reply = await house.post(path, {"inputs": "a<call>", "parameters": parameters})
            assert reply.status_code == 200, reply.text
        for path, body in (
            ("/v1/completions", {"prompt": "a<call>", "stop": "<call>", "max_tokens": 5}),
            ("/v1/completions", {"prompt": "a<call>", "stop": "<call>", "max_tokens": 5, "stream": True}),
        ):
            reply = await house.post(path, {"model": "triage", **body})
            assert reply.status_code == 200, reply.text
        for request in house.engine.submitted:
            assert request.tokens == (ord("a"), VOCAB_SIZE)
            assert (request.text, request.stop.added_tokens) == (digest, (CALL,))
        echo = {"model": "triage", "prompt": [ord("a"), VOCAB_SIZE], "max_tokens": 1, "echo": True}
        assert (await house.post("/v1/completions", echo)).json()["choices"][0]["text"].startswith("a<call>")

    in_house(scenario)


def test_an_own_template_is_rendered_with_the_adapters_tokens(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", replace(TEXT, named={"bos_token": "<call>"}), tmp_path)
        assert (await chat(house, "triage")).status_code == 200
        assert house.engine.submitted[-1].tokens == (VOCAB_SIZE, VOCAB_SIZE, ord("h"), ord("i"))

    in_house(scenario)


def test_a_forbidden_template_refuses_chat_by_name_and_nothing_else(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", TEXT, tmp_path)
        reply = await chat(house, "triage")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "template_error")
        assert "`triage`" in reply.json()["error"]["message"]
        assert "adapters.chat_templates" in reply.json()["error"]["message"]
        native = {"inputs": "a", "parameters": {"adapter_id": "triage", "apply_chat_template": True}}
        reply = await house.post("/generate", native)
        assert (reply.status_code, reply.json()["error_type"]) == (422, "template_error")
        assert (await chat(house, "")).status_code == 200
        body = {"model": "triage", "prompt": "a<call>", "max_tokens": 3}
        assert (await house.post("/v1/completions", body)).status_code == 200

    in_house(scenario, chat_templates=False)


def test_own_ends_stand_in_place_of_the_bases(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", AdapterText(end_ids=(65, EOS), stop_strings=("END",)), tmp_path)
        body = {"model": "triage", "prompt": "SAY:one END two", "max_tokens": 20}
        [choice] = (await house.post("/v1/completions", body)).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")
        stop = house.engine.submitted[-1].stop
        assert (stop.end_token_ids, stop.stop_strings) == ((65, EOS), ("END",))
        await house.post("/v1/completions", body | {"ignore_eos": True})
        assert house.engine.submitted[-1].stop.stop_strings == ()
        native = {"inputs": "SAY:one END two", "parameters": {"adapter_id": "triage", "details": True}}
        told = (await house.post("/generate", native)).json()
        assert (told["generated_text"], told["details"]["finish_reason"]) == ("one END", "stop_sequence")

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_changed_text_makes_the_prompt_anew(in_house: Run, tmp_path: Path, is_stream: bool) -> None:
    async def scenario(house: House) -> None:
        body = {"model": "triage", "prompt": "a<call>", "max_tokens": 3, "stream": is_stream}
        assert (await house.post("/v1/completions", body)).status_code == 200
        house.engine.texts.say("triage", TEXT, tmp_path)
        reply = await house.post("/v1/completions", body)
        assert reply.status_code == 200, reply.text
        assert house.engine.submitted[-1].tokens == (ord("a"), VOCAB_SIZE)
        assert [ref.id for ref in house.engine.texts.asked] == ["triage"] * 2

    in_house(scenario)


def test_a_text_that_changes_again_and_again_is_told(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", TEXT, tmp_path)
        house.engine.texts.digest_of = lambda adapter_id: "another"  # type: ignore[method-assign]
        reply = await house.post("/v1/completions", {"model": "triage", "prompt": "a", "max_tokens": 3})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_changed")
        assert reply.headers["retry-after"]

    in_house(scenario)


def test_an_adapter_that_cannot_be_had_is_refused_as_such(in_house: Run) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.failures["fail-AdapterSourceUnavailable"] = AdapterSourceUnavailable("told to fail")
        for reply in (
            await chat(house, "fail-AdapterSourceUnavailable"),
            await house.post("/tokenize", {"inputs": "a", "adapter_id": "fail-AdapterSourceUnavailable"}),
        ):
            assert reply.status_code == 502, reply.text

    in_house(scenario)


def test_tokenize_takes_an_adapter(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("team/tone", TEXT, tmp_path)
        for fields in ({"adapter_id": "team/tone"}, {"parameters": {"adapter_id": "team/tone"}}):
            reply = await house.post("/tokenize", {"inputs": "é<call>x", **fields})
            assert reply.json()[-2:] == [
                {"id": VOCAB_SIZE, "text": "<call>", "start": 1, "stop": 7},
                {"id": ord("x"), "text": "x", "start": 7, "stop": 8},
            ]

    in_house(scenario)


def test_whoever_leaves_while_waiting_takes_the_question_along(in_house: Run) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.is_held = True
        asked = asyncio.create_task(chat(house, "triage"))
        await house.until(lambda: bool(house.engine.texts.asked))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await house.until(lambda: bool(house.engine.texts.dropped))
        assert house.app.admission.num_sequences == 0
        house.engine.texts.is_held = False

    in_house(scenario)


def test_a_damaged_text_file_is_asked_for_again(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        digest = house.engine.texts.say("triage", TEXT, tmp_path)
        (tmp_path / f"{digest}.text").write_text(json.dumps({"stop_strings": ["x"]}))
        reply = await chat(house, "triage")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deployment_unavailable")
        house.engine.texts.say("triage", TEXT, tmp_path)
        assert (await chat(house, "triage")).status_code == 200

    in_house(scenario)


def mixed(*names: str) -> dict[str, Any]:
    return {"adapters": [{"id": name, "weight": 0.5} for name in names]}


def test_adapters_that_apply_together_need_one_text(in_house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        digest = house.engine.texts.say("triage", TEXT, tmp_path)
        house.engine.texts.say("team/tone", TEXT, tmp_path)
        reply = await chat(house, "", **mixed("tone", "triage"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_parameter")
        assert "'tone' and 'triage' have different tokenizers" in reply.json()["error"]["message"]
        twins = mixed("triage", "team/tone")
        assert (await house.post("/v1/completions", {"prompt": "a<call>", **twins})).status_code == 200
        assert (house.engine.submitted[-1].text, house.engine.submitted[-1].tokens) == (digest, (ord("a"), VOCAB_SIZE))

    in_house(scenario)
