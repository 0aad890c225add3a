"""POST /classify and /classify_batch: both bodies, labels, probabilities, headers and refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from manylora.engine.pooling import Pooling
from manylora.models.text.tokenizer import TokenSpan
from manylora.server.routes.lorax.entities import entities_of, probabilities
from tests.server.conftest import House
from tests.server.routes.test_request_fields import refused

InHouse = Callable[..., None]
CLASSIFY, BATCH = "/classify", "/classify_batch"
NAMED = {"parameters": {"adapter_id": "sorter"}}


@pytest.mark.parametrize("given", ["Hi", ["Hi", "Hello"]])
@pytest.mark.parametrize("named", [NAMED, {"model": "sorter", "api_token": ""}, {"adapter_id": "sorter"}])
def test_each_text_gets_its_class(in_house: InHouse, given: Any, named: dict[str, Any]) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CLASSIFY, {"input": given, **named})
        assert reply.status_code == 200, reply.text
        body = reply.json()
        total = 1 + math.e + math.e**2
        texts = [given] if isinstance(given, str) else given
        assert [entry["index"] for entry in body["data"]] == list(range(len(texts)))
        for entry in body["data"]:
            assert (entry["label"], entry["num_classes"]) == ("LABEL_2", 3)
            assert entry["probs"] == pytest.approx([1 / total, math.e / total, math.e**2 / total])
        assert body["id"].startswith("classify-")
        assert (body["object"], body["model"]) == ("list", "sorter")
        assert reply.headers["x-adapter-id"] == "sorter"
        assert reply.headers["x-prompt-tokens"] == str(sum(map(len, texts)))
        assert {request.pooling for request in house.engine.submitted} == {Pooling.CLASSES}

    in_house(scenario)


@pytest.mark.parametrize("prefix", ["", "/acme/deployments/v2/llms/tiny"])
def test_the_tokens_of_a_text_become_entities(in_house: InHouse, prefix: str) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "cfcd", "parameters": {"adapter_id": "sorter"}, "stream": False}
        found = (await house.post(prefix + CLASSIFY, body)).json()
        assert [(each["entity_group"], each["word"], each["start"], each["end"]) for each in found] == [
            ("LABEL_0", "cfc", 0, 3),
            ("LABEL_1", "d", 3, 4),
        ]
        mean = sum(0.25 + ord(letter) / 1024 for letter in "cfc") / 3
        assert found[0]["score"] == pytest.approx(mean)
        batch = (await house.post(prefix + BATCH, {**body, "inputs": ["cfcd", "d"]})).json()
        assert batch[0] == found
        assert [each["word"] for each in batch[1]] == ["d"]

    in_house(scenario)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CLASSIFY, {}, "`inputs` or `input` is required"),
        (CLASSIFY, {"inputs": "a", "input": "b"}, "at most one of `inputs` and `input` may be provided"),
        (CLASSIFY, {"inputs": ""}, "`inputs` cannot be empty"),
        (CLASSIFY, {"inputs": ["a"]}, "`inputs`: expected a string"),
        (CLASSIFY, {"input": ""}, "`input` cannot be empty"),
        (CLASSIFY, {"input": []}, "`input` cannot be empty"),
        (CLASSIFY, {"input": [1]}, "`input`: expected an array of strings"),
        (CLASSIFY, {"input": ["a"] * 2049}, "`input` may have at most 2048 items"),
        (CLASSIFY, {"input": "a", "top_k": 3}, "`top_k` is not a known field"),
        (CLASSIFY, {"inputs": "x" * 600}, "`inputs` must have less than 511 tokens. Given: 600"),
        (BATCH, {}, "`inputs` is required"),
        (BATCH, {"inputs": "a"}, "`inputs`: expected an array of strings"),
        (BATCH, {"inputs": ["a", ""]}, "`inputs` cannot be empty"),
        (BATCH, {"inputs": ["a"], "model": "b"}, "`model` is not a known field"),
    ],
)
def test_bad_input_is_refused_by_its_field(in_house: InHouse, path: str, body: dict[str, Any], message: str) -> None:
    async def scenario(house: House) -> None:
        assert (await refused(house, path, body)).startswith(message)
        assert not house.engine.submitted

    in_house(scenario)


@pytest.mark.parametrize(
    ("logits", "problem", "expected"),
    [
        ([0.0, 0.0], "", [0.5, 0.5]),
        ([1000.0, -1000.0], "single_label_classification", [1.0, 0.0]),
        ([0.0], "", [0.5]),
        ([0.0, -2000.0], "multi_label_classification", [0.5, 0.0]),
        ([3.5, -1.0], "regression", [3.5, -1.0]),
    ],
)
def test_probabilities_follow_the_problem_of_the_head(logits: list[float], problem: str, expected: list[float]) -> None:
    assert probabilities(logits, problem) == pytest.approx(expected, abs=1e-12)


def test_entities_begin_anew_at_a_b_and_leave_out_what_is_outside() -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    text = "<s>Ann Bob in Rome"
    spans = [
        TokenSpan(0, "<s>", 0, 0),
        *(TokenSpan(1, "", *at) for at in ((3, 6), (7, 10), (11, 13), (14, 16), (16, 18))),
    ]
    best = [[1, 1.0], [1, 0.5], [1, 0.75], [0, 0.9], [3, 0.5], [2, 1.0]]
    found = entities_of(text, spans, best, labels)
    assert [(each["entity_group"], each["word"], each["score"]) for each in found] == [
        ("PER", "Ann", 0.5),
        ("PER", "Bob", 0.75),
        ("LOC", "Ro", 0.5),
        ("PER", "me", 1.0),
    ]
    assert entities_of(text, spans, [[2, 0.5]] * 6, labels)[0]["word"] == "Ann Bob in Rome"
