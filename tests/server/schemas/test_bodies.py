"""Models of bodies: how they read, in which order they refuse, and the schemas that they show."""

import json

import pytest
from pydantic import ValidationError

from manylora.config.settings import Config
from manylora.errors import InvalidJson, InvalidParameter
from manylora.server.schemas.body import Body, Bounds, Model, Read, read_body
from manylora.server.schemas.lorax.bodies import GenerateBody, TokenizeBody
from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody
from tests.support.body_models import body_models

BOUNDS = Bounds(settings=Config().server, max_input=511)
MODELS = body_models()


def read(model: type[Model], body: object, bounds: Bounds = BOUNDS) -> Model:
    return read_body(json.dumps(body).encode(), model, bounds)


def refusal(model: type[Body], body: object, bounds: Bounds = BOUNDS) -> str:
    with pytest.raises(InvalidParameter) as refused:
        read(model, body, bounds)
    return refused.value.message


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_read_by_a_reader_of_ours(model: type[Body]) -> None:
    """A field that pydantic read by itself would be refused in pydantic's words, and as another exception."""
    for name, field in model.model_fields.items():
        assert any(isinstance(each, Read) for each in field.metadata), name


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_value_of_a_field_is_a_fault(model: type[Body]) -> None:
    values: tuple[object, ...] = (None, True, 0, -1, 1.5, 2**70, "", "x", [], [1], [None], [{}], {}, {"x": {}})
    for name in model.model_fields:
        for value in values:
            try:
                model.model_validate({name: value}, context=BOUNDS)
            except InvalidParameter:
                continue
            except ValidationError as error:
                pytest.fail(f"{name}={value!r}: {error}")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_schema_knows_every_name_and_no_other(model: type[Body]) -> None:
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == model.names() | model.rules.unread
    assert set(schema.get("required", ())) == set(model.required)
    for name, shown in schema["properties"].items():
        assert "title" not in shown, name
        assert "default" not in shown, name


@pytest.mark.parametrize(("model", "body"), [(CompletionBody, {"prompt": "x"}), (GenerateBody, {"inputs": "x"})])
def test_null_counts_as_absent_in_every_field(model: type[Body], body: dict[str, object]) -> None:
    absent = dict.fromkeys(model.names() - body.keys())
    assert read(model, {**absent, **body}) == read(model, body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"parameters": {"best_of": 2, "top_k": 0, "adapter_id": 1}}, "inputs"),
        ({"inputs": "x", "parameters": {"zzz": 1, "best_of": 9}}, "zzz"),
        ({"inputs": "x", "parameters": {"seed": -1, "best_of": 9, "do_sample": True}}, "best_of"),
        ({"inputs": "x", "parameters": {"seed": "x", "best_of": 2}}, "best_of"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 0, "top_p": 2}}, "top_p"),
        ({"inputs": "x", "parameters": {"top_p": 2, "top_k": 0}}, "top_k"),
        ({"inputs": "x", "parameters": {"stop": [""], "adapter_id": 1}}, "adapter_id"),
    ],
)
def test_the_first_field_in_the_order_of_checks_is_the_one_refused(body: object, field: str) -> None:
    assert f"`{field}`" in refusal(GenerateBody, body)


@pytest.mark.parametrize(("is_stream", "given"), [(True, False), (False, True)])
def test_a_route_refuses_a_stream_that_contradicts_it(is_stream: bool, given: bool) -> None:
    bounds = Bounds(settings=Config().server, max_input=511, is_stream=is_stream)
    assert "send the request to /generate" in refusal(GenerateBody, {"inputs": "x", "stream": given}, bounds)
    assert read(GenerateBody, {"inputs": "x"}, bounds).stream is is_stream


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (ChatBody, {"messages": [{"role": "user"}], "top_logprobs": 2}, "`top_logprobs` needs"),
        (CompletionBody, {"prompt": "x", "stream_options": {"include_usage": 1}}, "`stream_options` needs"),
        (CompletionBody, {"prompt": "x", "n": 2, "best_of": 1}, "`best_of` must be >= `n`"),
        (ChatBody, {"messages": [{"role": "user"}], "continue_final_message": True}, "`continue_final_message` needs"),
        (CompletionBody, {"prompt": "x", "ignore_eos": True, "ignore_eos_token": False}, "are one option and differ"),
        (
            CompletionBody,
            {"prompt": "x", "adapter_id": "a", "merged_adapters": {"ids": ["a"], "weights": [1]}},
            "at most one of `adapter_id` or `adapters` may be provided",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(model: type[Body], body: object, message: str) -> None:
    assert message in refusal(model, body)


def test_a_body_to_tokenise_names_its_adapter_in_one_place() -> None:
    assert read(TokenizeBody, {"inputs": "x", "parameters": {"adapter_id": "a"}}).naming.adapter_id == "a"
    assert read(TokenizeBody, {"inputs": "x", "adapter_id": "a"}).naming.adapter_id == "a"
    with pytest.raises(InvalidParameter, match="stands beside `parameters`"):
        _ = read(TokenizeBody, {"inputs": "x", "adapter_id": "a", "parameters": {}}).naming


@pytest.mark.parametrize("body", [b"", b"{", b'{"inputs": NaN}', b"\xff", b'{"inputs": "\\ud800"}'])
def test_what_is_not_json_is_refused_as_such(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        read_body(body, GenerateBody, BOUNDS)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="given an array"):
        read_body(b"[]", GenerateBody, BOUNDS)
