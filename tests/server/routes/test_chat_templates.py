"""Chat on bases with the published formats and on bases without a template, through every route that chats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.models.text.adapter_text import AdapterText
from tests.models.text.chat_formats import FORMATS
from tests.server.conftest import House

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
DEPLOYMENT = "/acme/deployments/v2/llms/tiny"
HELLO = [{"role": "user", "content": "Hi"}]
NO_TEMPLATE = "model `tiny` has no chat template; "


@pytest.mark.parametrize("model", ["tiny", "triage", ""])
@pytest.mark.parametrize("prefix", ["", DEPLOYMENT])
def test_chat_on_a_base_without_a_template_is_refused_with_what_to_use_instead(
    in_house: InHouse, model: str, prefix: str
) -> None:
    async def scenario(house: House) -> None:
        for stream in (False, True):
            reply = await house.post(prefix + CHAT, {"model": model, "messages": HELLO, "stream": stream})
            assert reply.status_code == 400
            error = {"type": "invalid_request_error", "param": None, "code": "template_error"}
            assert reply.json()["error"] == {"message": f"{NO_TEMPLATE}use /v1/completions", **error}
        adapter = {"adapter_id": "triage"} if model == "triage" else {}
        body: dict[str, Any] = {"inputs": "Hi", "parameters": {**adapter, "apply_chat_template": True}}
        for path in ("/generate", "/generate_stream", "/", "/invocations"):
            reply = await house.post(prefix + path, body)
            assert reply.status_code == 422
            assert reply.json() == {
                "error": f"{NO_TEMPLATE}leave `apply_chat_template` out",
                "error_type": "template_error",
                "code": "template_error",
            }
        assert not house.engine.submitted
        reply = await house.post(prefix + "/v1/completions", {"model": model, "prompt": "Hi", "max_tokens": 2})
        assert reply.status_code == 200
        assert (await house.post(prefix + "/generate", {"inputs": "Hi", "parameters": adapter})).status_code == 200

    in_house(scenario, base_template=None)


def test_an_adapter_with_a_template_chats_on_a_base_without_one(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", AdapterText(templates={"default": "<s>{{ messages[0].content }}"}), tmp_path)
        reply = await house.post(CHAT, {"model": "triage", "messages": HELLO, "max_tokens": 2})
        assert reply.status_code == 200
        assert house.tokenizer.decode(house.engine.submitted[-1].tokens, skip_special_tokens=False) == "<s>Hi"
        native = {"inputs": "Hi", "parameters": {"adapter_id": "triage", "apply_chat_template": True}}
        assert (await house.post("/generate", native)).status_code == 200

    in_house(scenario, base_template=None)


ORDERS: dict[str, list[list[str]]] = {
    "two users": [["user", "Hi"], ["user", "Ho"]],
    "an assistant first": [["assistant", "Hi"]],
    "two assistants": [["user", "Hi"], ["assistant", "Ho"], ["assistant", "Ha"]],
}


@pytest.mark.parametrize("name", [name for name, chat in FORMATS.items() if chat.refuses_order])
def test_a_wrong_order_of_roles_gets_the_templates_own_words(in_house: InHouse, name: str) -> None:
    async def scenario(house: House) -> None:
        for order in ORDERS.values():
            messages = [{"role": role, "content": content} for role, content in order]
            reply = await house.post(CHAT, {"model": "tiny", "messages": messages})
            assert reply.status_code == 400
            error = reply.json()["error"]
            assert (error["param"], error["code"]) == ("messages", "template_error")
            assert error["message"].startswith("the chat template refused the messages: ")
            assert "roles must alternate user/assistant" in error["message"]
        assert not house.engine.submitted

    in_house(scenario, base_template=FORMATS[name].template)


@pytest.mark.parametrize("name", [name for name, chat in FORMATS.items() if chat.bos == "<s>"])
def test_a_conversation_reaches_the_engine_in_the_bases_format(in_house: InHouse, name: str) -> None:
    chat = FORMATS[name]
    turns = [("system", " Be brief."), ("user", " Hi "), ("assistant", "Ho"), ("user", "")]
    messages = [{"role": role, "content": content} for role, content in turns[0 if chat.has_system else 1 :]]

    async def scenario(house: House) -> None:
        for prompting in (True, False):
            body = {"messages": messages, "add_generation_prompt": prompting, "max_tokens": 1}
            assert (await house.post(CHAT, body)).status_code == 200
            found = house.tokenizer.decode(house.engine.submitted[-1].tokens, skip_special_tokens=False)
            assert found == chat.text(messages, prompting=prompting)

    in_house(scenario, base_template=chat.template)


GUIDED = "{{ messages[0].content }} by {{ guideline | trim }}"


@pytest.mark.parametrize("template", [GUIDED, "{{ policy.text }}", "{% for each in absent.lines %}{% endfor %}"])
@pytest.mark.parametrize("at", ["base", "adapter"])
def test_a_variable_that_a_template_needs_is_named_as_lorax_does(
    in_house: InHouse, tmp_path: Path, template: str, at: str
) -> None:
    async def scenario(house: House) -> None:
        house.engine.texts.say("triage", AdapterText(templates={"default": template}), tmp_path)
        named = {} if at == "base" else {"adapter_id": "triage"}
        native = await house.post("/generate", {"inputs": "Hi", "parameters": {**named, "apply_chat_template": True}})
        assert (native.status_code, native.json()["error_type"]) == (422, "missing_template_variable")
        assert "'guideline' is undefined" in native.json()["error"] or template != GUIDED
        openai = await house.post(CHAT, {"messages": HELLO, **named})
        error = openai.json()["error"]
        assert (openai.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "template_error")
        assert not house.engine.submitted

    in_house(scenario, base_template=template)


def test_a_template_that_asks_for_a_guideline_first_needs_none(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert (await house.post(CHAT, {"messages": HELLO, "max_tokens": 2})).status_code == 200
        assert house.tokenizer.decode(house.engine.submitted[-1].tokens) == "Hi"

    in_house(
        scenario,
        base_template="{{ messages[0].content }}{% if guideline %}{{ guideline }}{% endif %}"
        "{% if guideline is defined %}{{ guideline }}{% endif %}{{ another }}",
    )
