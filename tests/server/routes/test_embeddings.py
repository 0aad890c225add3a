"""POST /v1/embeddings and /embed: forms of the input and of the reply, headers, bounds, usage and refusals."""

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from manylora.engine.events import PooledValues
from manylora.engine.pooling import Pooling
from manylora.server.routes.pooled import rows_of, shortened
from tests.server.conftest import House
from tests.server.routes.test_request_fields import passes, refused

InHouse = Callable[..., None]
EMBEDDINGS, EMBED = "/v1/embeddings", "/embed"


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ("Hi", [2]),
        (["Hi", "Hello"], [2, 5]),
        ([72, 105, 33], [3]),
        ([[72], [72, 105]], [1, 2]),
        (["Hi", [72.0]], [2, 1]),
    ],
)
def test_every_form_of_input_gives_a_vector_for_each(in_house: InHouse, given: object, lengths: list[int]) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(EMBEDDINGS, {"input": given, "model": "tiny", "user": "u"})
        body = reply.json()
        assert [entry["embedding"] for entry in body["data"]] == [[length, 1.0, 2.0, 3.0] for length in lengths]
        assert [(entry["object"], entry["index"]) for entry in body["data"]] == [
            ("embedding", index) for index in range(len(lengths))
        ]
        assert (body["object"], body["model"]) == ("list", "tiny")
        assert body["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
        assert reply.headers["x-prompt-tokens"] == reply.headers["x-total-tokens"] == str(sum(lengths))
        assert reply.headers["x-generated-tokens"] == "0"
        assert {request.pooling for request in house.engine.submitted} == {Pooling.MEAN}
        assert {request.stop.max_new_tokens for request in house.engine.submitted} == {0}

    in_house(scenario)


def test_base64_is_little_endian_float32(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"input": "Hi", "encoding_format": "base64", "dimensions": 4}
        [entry] = (await house.post(EMBEDDINGS, body)).json()["data"]
        assert struct.unpack("<4f", base64.b64decode(entry["embedding"])) == (2.0, 1.0, 2.0, 3.0)

    in_house(scenario)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_the_first_dimensions_have_the_length_1(in_house: InHouse, dimensions: int) -> None:
    """The fake engine's vectors are no unit vectors: what is not cut keeps its bits."""

    async def scenario(house: House) -> None:
        ask = {"input": ["Hi", [72]], "dimensions": dimensions}
        floats = [entry["embedding"] for entry in (await house.post(EMBEDDINGS, ask)).json()["data"]]
        for vector, whole in zip(floats, ([2.0, 1.0, 2.0, 3.0], [1.0, 1.0, 2.0, 3.0]), strict=True):
            kept = whole[:dimensions]
            length = math.hypot(*kept) if dimensions < 4 else 1.0
            assert vector == pytest.approx([value / length for value in kept], rel=1e-6)
        encoded = (await house.post(EMBEDDINGS, {**ask, "encoding_format": "base64"})).json()["data"]
        unpacked = [struct.unpack(f"<{dimensions}f", base64.b64decode(entry["embedding"])) for entry in encoded]
        assert [tuple(vector) for vector in floats] == [pytest.approx(vector, rel=1e-6) for vector in unpacked]

    in_house(scenario)


def test_numbers_that_are_zero_stay_zero() -> None:
    whole = PooledValues(data=np.array([0, 0, 3], dtype="<f4").tobytes(), columns=3)
    assert rows_of(shortened(whole, 2)) == [[0.0, 0.0]]
    assert shortened(whole, 3) is whole


@pytest.mark.parametrize(
    "named", [{"model": "triage"}, {"adapter_id": "triage"}, {"parameters": {"adapter_id": "triage"}}]
)
def test_an_adapter_is_named_as_on_the_other_routes(in_house: InHouse, named: dict[str, Any]) -> None:
    async def scenario(house: House) -> None:
        for path, body in ((EMBEDDINGS, {"input": "Hi"}), (EMBED, {"inputs": "Hi"})):
            if path == EMBED and "model" in named:
                continue
            reply = await house.post(path, {**body, **named})
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-adapter-id"] == "triage"
            assert reply.headers["x-adapter-tier"] == "disk"
            assert reply.headers["x-adapter-load-time"] == "12"
            if path == EMBEDDINGS:
                assert reply.json()["model"] == "triage"

    in_house(scenario)


@pytest.mark.parametrize("prefix", ["", "/acme/deployments/v2/llms/tiny"])
def test_lorax_has_one_vector(in_house: InHouse, prefix: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(prefix + EMBED, {"inputs": "Hello", "parameters": None, "stream": False})
        assert reply.json() == {"embeddings": [5.0, 1.0, 2.0, 3.0]}
        assert reply.headers["x-prompt-tokens"] == "5"

    in_house(scenario)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (EMBEDDINGS, {}, "`input` is required"),
        (EMBEDDINGS, {"input": ""}, "`input` cannot be empty"),
        (EMBEDDINGS, {"input": []}, "`input` cannot be empty"),
        (EMBEDDINGS, {"input": ["a", ""]}, "`input` cannot be empty"),
        (EMBEDDINGS, {"input": ["a"] * 2049}, "`input` may have at most 2048 items"),
        (
            EMBEDDINGS,
            {"input": 7},
            "`input`: expected a string, an array of strings, an array of token ids or an array",
        ),
        (EMBEDDINGS, {"input": [True]}, "`input`: expected"),
        (EMBEDDINGS, {"input": [[1, "a"]]}, "`input`: expected"),
        (EMBEDDINGS, {"input": [99999]}, "`input`: token ids must be >= 0 and <"),
        (EMBEDDINGS, {"input": "x" * 600}, "`input` must have less than 511 tokens. Given: 600"),
        (EMBEDDINGS, {"input": "Hi", "encoding_format": "int8"}, "`encoding_format` must be float or base64"),
        (EMBEDDINGS, {"input": "Hi", "encoding_format": 1}, "`encoding_format`: expected a string"),
        (
            EMBEDDINGS,
            {"input": "Hi", "dimensions": 5},
            "`dimensions` must be at most 4, the model's own number of them. Given: 5",
        ),
        (EMBEDDINGS, {"input": "Hi", "dimensions": 0}, "`dimensions` must be strictly positive"),
        (EMBEDDINGS, {"input": "Hi", "normalize": True}, "`normalize` is not"),
        (EMBEDDINGS, {"inputs": "Hi", "input": "Hi"}, "`inputs` is not a known field"),
        (EMBEDDINGS, {"input": "Hi", "adapter_id": "a", "parameters": {}}, "`adapter_id` stands beside `parameters`"),
        (EMBED, {}, "`inputs` is required"),
        (EMBED, {"inputs": ""}, "`inputs` cannot be empty"),
        (EMBED, {"inputs": ["Hi"]}, "`inputs`: expected a string"),
        (EMBED, {"inputs": "Hi", "dimensions": 4}, "`dimensions` is not a known field"),
        (EMBED, {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}, "`max_new_tokens` is not a known field"),
    ],
)
def test_bad_input_is_refused_by_its_field(in_house: InHouse, path: str, body: dict[str, Any], message: str) -> None:
    async def scenario(house: House) -> None:
        assert (await refused(house, path, body)).startswith(message)
        assert not house.engine.submitted

    in_house(scenario)


def test_a_long_input_is_cut_if_the_request_asks_for_it(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await passes(house, EMBEDDINGS, {"input": "x" * 600, "truncate_prompt_tokens": 9})
        assert len(house.engine.submitted[0].tokens) == 9

    in_house(scenario)


@pytest.mark.parametrize(("path", "field"), [(EMBEDDINGS, "input"), (EMBED, "inputs")])
def test_an_unknown_adapter_and_a_failed_one_have_their_status(in_house: InHouse, path: str, field: str) -> None:
    async def scenario(house: House) -> None:
        for name, status in (("missing", 404), ("fail-TaskUnsupported", 400 if path == EMBEDDINGS else 422)):
            reply = await house.post(path, {field: "Hi", "adapter_id": name})
            assert reply.status_code == status, reply.text

    in_house(scenario)


SORTER = {"parameters": {"adapter_id": "sorter"}}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/embed", {"inputs": "CRASH"}, "embedding_failure"),
        ("/v1/embeddings", {"input": "CRASH"}, "embedding_failure"),
        ("/classify", {"inputs": "CRASH", **SORTER}, "classification_failure"),
        ("/classify", {"input": ["Hi", "CRASH"], **SORTER}, "classification_failure"),
        ("/classify_batch", {"inputs": ["Hi", "CRASH"], **SORTER}, "classification_failure"),
    ],
)
def test_a_fault_names_the_work_as_lorax_does(in_house: InHouse, path: str, body: dict[str, Any], code: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(path, body)
        error = reply.json()
        assert reply.status_code == 500
        if path != "/v1/embeddings":
            assert (error["error_type"], error["code"]) == (code, code)
        else:
            assert (error["error"]["type"], error["error"]["code"]) == ("server_error", code)

    in_house(scenario)
