"""The LoRAX-style routes, as a client sees them."""

import json
from collections.abc import Callable

import pytest

from manylora.merging import MergeRecipe, MergeStrategy
from manylora.server.routes.lorax import generate
from tests.server.asgi_client import calling
from tests.server.conftest import House
from tests.server.fake_engine import QUEUE_MS

InHouse = Callable[..., None]


def test_generate_answers_with_text_alone_unless_details_are_asked(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "Hi"})
        assert reply.status_code == 200
        assert reply.json() == {"generated_text": "Hello from base."}
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-prompt-tokens"] == "2"
        assert reply.headers["x-generated-tokens"] == "17"
        assert reply.headers["x-total-tokens"] == "19"
        assert "x-adapter-id" not in reply.headers

    in_house(scenario)


def test_details_tell_every_token_and_the_end_of_the_sequence(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "SAY:ab", "parameters": {"details": True}})
        details = reply.json()["details"]
        assert reply.json()["generated_text"] == "ab"
        assert [token["text"] for token in details["tokens"]] == ["a", "b", "</s>"]
        assert [token["special"] for token in details["tokens"]] == [False, False, True]
        assert details["finish_reason"] == "eos_token"
        assert (details["prompt_tokens"], details["generated_tokens"], details["skipped_tokens"]) == (6, 3, 0)
        assert details["seed"] is None
        assert details["prefill"] == []
        assert "best_of_sequences" not in details
        assert "alternative_tokens" not in details["tokens"][0]

    in_house(scenario)


def test_the_root_answers_an_array_of_one(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path in ("/", "/invocations"):
            reply = await house.post(path, {"inputs": "Hi", "stream": False, "parameters": None})
            assert reply.json() == [{"generated_text": "Hello from base."}]

    in_house(scenario)


def test_an_adapter_is_used_and_named_in_the_headers(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": {"adapter_id": "team/tone"}})
        assert reply.json()["generated_text"] == "Hello from team/tone."
        assert reply.headers["x-adapter-id"] == "team/tone"
        assert reply.headers["x-adapter-source"] == "local"
        assert reply.headers["x-adapter-tier"] == "disk"
        assert reply.headers["x-adapter-load-time"] == "12"
        for name in (None, "", "__base_model__", "tiny"):
            base = await house.post("/generate", {"inputs": "Hi", "parameters": {"adapter_id": name}})
            assert base.json()["generated_text"] == "Hello from base."

    in_house(scenario)


def test_best_of_returns_the_best_and_shows_the_others(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        parameters = {"best_of": 2, "do_sample": True, "details": True}
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": parameters})
        details = reply.json()["details"]
        (other,) = details["best_of_sequences"]
        assert details["seed"] % 10 <= other["seed"] % 10
        assert reply.headers["x-generated-tokens"] == str(details["generated_tokens"] + other["generated_tokens"])

    in_house(scenario)


def test_details_list_the_tokens_of_the_prompt_on_demand(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        parameters = {"decoder_input_details": True, "best_of": 2, "do_sample": True}
        details = (await house.post("/generate", {"inputs": "Hié", "parameters": parameters})).json()["details"]
        for sequence in (details, *details["best_of_sequences"]):
            assert [token["id"] for token in sequence["prefill"]] == [72, 105, 195, 169]
            assert [token["text"] for token in sequence["prefill"]] == ["H", "i", "", "é"]
            assert [token["logprob"] for token in sequence["prefill"]] == [None, -1, -2, -3]

    in_house(scenario)


def test_a_stop_string_stays_in_the_text(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for stop in ("b", ["zzz", "b"]):
            body = {"inputs": "SAY:abcd", "parameters": {"stop": stop, "details": True}}
            reply = (await house.post("/generate", body)).json()
            assert reply["generated_text"] == "ab"
            assert reply["details"]["finish_reason"] == "stop_sequence"

    in_house(scenario)


def test_truncate_and_full_text_and_chat_template(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        parameters = {"truncate": 5, "return_full_text": True}
        reply = await house.post("/generate", {"inputs": "0123SAY:z", "parameters": parameters})
        assert reply.json()["generated_text"] == "0123SAY:zz"
        assert reply.headers["x-prompt-tokens"] == "5"
        await house.post("/generate", {"inputs": "Hi", "parameters": {"apply_chat_template": True}})
        assert house.engine.submitted[-1].tokens[0] == 256

    in_house(scenario)


def test_null_is_absent_and_a_whole_float_is_an_integer(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        names = ("adapter_id", "best_of", "temperature", "top_k", "top_p", "typical_p", "seed", "stop", "truncate")
        more = ("do_sample", "details", "watermark", "response_format", "merged_adapters", "return_k_alternatives")
        parameters = {**dict.fromkeys((*names, *more)), "max_new_tokens": 3.0, "unknown": None}
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": parameters})
        assert reply.json() == {"generated_text": "Hel"}

    in_house(scenario)


def test_what_is_asked_over_the_window_is_cut_to_the_room_left(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 4096}})
        assert house.engine.submitted[-1].stop.max_new_tokens == 510

    in_house(scenario)


def test_or_refused_where_the_operator_says_so(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 4096}})
        assert reply.status_code == 422
        assert reply.json()["code"] == "context_length_exceeded"
        assert "Given: 2 `inputs` tokens and 4096 `max_new_tokens`" in reply.json()["error"]

    in_house(scenario, overlong_max_new_tokens="reject")


def test_merged_adapters_are_one_adapter_of_several(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        merged = {"ids": ["tone", "team/tone"], "weights": [0.7, -0.4], "merge_strategy": "linear", "density": 0}
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": {"merged_adapters": merged}})
        assert reply.status_code == 200
        assert reply.headers["x-adapter-id"] == "tone,team/tone"
        adapter = house.engine.submitted[-1].adapter
        assert adapter is not None
        assert adapter.merge is not None
        assert [member.id for member in adapter.merge.members] == ["tone", "team/tone"]
        assert adapter.merge.recipe == MergeRecipe((0.7, -0.4), MergeStrategy.LINEAR)

    in_house(scenario)


def test_adapters_apply_together_with_their_weights(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        mixed = [{"id": "tone", "weight": 0.5}, {"id": "team/tone"}, {"id": "triage", "weight": -2}]
        for path, body in (
            ("/generate", {"inputs": "Hi", "parameters": {"adapters": mixed}}),
            ("/v1/completions", {"prompt": "Hi", "adapters": mixed, "max_tokens": 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "adapters": mixed}),
            ("/v1/completions", {"model": "tiny", "prompt": "Hi", "adapters": mixed, "max_tokens": 2}),
        ):
            reply = await house.post(path, body)
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-adapter-id"] == "tone,team/tone,triage"
            adapter = house.engine.submitted[-1].adapter
            assert adapter is not None
            assert adapter.mix is not None
            assert [member.id for member in adapter.mix.members] == ["tone", "team/tone", "triage"]
            assert adapter.mix.weights == (0.5, 1.0, -2.0)
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": {"adapters": [{"id": "tone"}]}})
        adapter = house.engine.submitted[-1].adapter
        assert adapter is not None
        assert (adapter.id, adapter.mix) == ("tone", None)

    in_house(scenario)


ONE = {"id": "tone"}
PREFIX = "Input validation error: "
VIOLATIONS = [
    ({"adapters": {}}, "`adapters`: expected an array, given an object"),
    ({"adapters": ["tone"]}, "`adapters[0]`: expected an object with `id` and `weight`, given a string"),
    ({"adapters": []}, "`adapters` must name at least one adapter; leave it out for the base model"),
    ({"adapters": [ONE] * 9}, "`adapters` may name at most 8 adapters (server.max_adapters). Given: 9"),
    ({"adapters": [{"weight": 1}]}, "`adapters[0].id` cannot be empty"),
    (
        {"adapters": [ONE, {"id": "a", "weight": 1001}]},
        "`adapters[1].weight` must be between -1000 and 1000. Given: 1001",
    ),
    ({"adapters": [{"id": "a", "weight": True}]}, "`weight`: expected a number, given a boolean"),
    ({"adapters": [{"id": "a", "weight": 10**400}]}, "`weight`: expected a finite number"),
    ({"adapters": [{"id": "a", "scale": 1}]}, "`scale` is not a known field of `adapters`: use `weight`"),
    ({"adapters": [{"name": "a"}]}, "`name` is not a known field of `adapters`: use `id`"),
    (
        {"adapters": [ONE, {"id": "tone/"}]},
        "`adapters` names the adapter 'tone' twice ('tone', 'tone/'): name it once, with the sum of the weights",
    ),
    (
        {"adapters": [{"id": "../x"}]},
        "`adapter_id` must be a name such as `support-triage` or `team/name`. Given: ../x",
    ),
    ({"adapters": [ONE], "adapter_id": "tone"}, "at most one of `adapter_id` and `adapters` may be provided"),
    (
        {"adapters": [ONE], "merged_adapters": {"ids": ["tone"], "weights": [1]}},
        "at most one of `merged_adapters` and `adapters` may be provided",
    ),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"max_new_tokens": True}, "`max_new_tokens`: expected an integer, given a boolean"),
    ({"max_new_tokens": "7"}, "`max_new_tokens`: expected an integer, given a string"),
    ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"temperature": -1}, "`temperature` must be non-negative"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_p": 1.5}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"presence_penalty": -3}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
    ({"seed": -1}, "`seed`: expected an integer >= 0, given -1"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"stop": [""]}, "`stop` must not contain empty strings"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 511. Given: 0"),
    ({"return_k_alternatives": 0}, "`return_k_alternatives` must be strictly positive"),
    ({"details": 1}, "`details`: expected a boolean, given an integer"),
    ({"adapter_id": "../x"}, "`adapter_id` must be a name such as `support-triage` or `team/name`. Given: ../x"),
    ({"adapter_id": "x", "adapter_source": "s3"}, "`adapter_source` must be one of local. Given: s3"),
    ({"watermark": True}, "`watermark` is not supported by this server"),
    (
        {"response_format": {"type": "regex"}},
        "`response_format` is not supported by this server yet: `type` is one of text, json_object, json_schema",
    ),
    (
        {"response_format": {"type": "json_object", "schema": {"not": {}}}},
        "`response_format` schema is not supported: it has keywords that cannot be enforced: `not` (#)",
    ),
    ({"merged_adapters": {"ids": ["a"]}}, "number of adapter IDs must match number of adapter weights"),
    (
        {"merged_adapters": {"ids": [], "weights": []}},
        "at least one adapter ID must be provided when setting `adapters`",
    ),
    ({"merged_adapters": {"ids": ["a"], "weights": ["1"]}}, "`weights`: expected an array of numbers, given a string"),
    ({"merged_adapters": {"ids": ["a"], "weights": [10**400]}}, "`weights`: expected finite numbers"),
    (
        {"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "mean"}},
        "unknown `merge_strategy` 'mean'",
    ),
    (
        {"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "ties", "density": 0}},
        "`density` must be > 0.0 and <= 1.0 for `ties`",
    ),
    (
        {"merged_adapters": {"ids": ["a"]}, "adapter_id": "a"},
        "at most one of `adapter_id` or `adapters` may be provided",
    ),
]


@pytest.mark.parametrize(("parameters", "message"), VIOLATIONS, ids=lambda value: str(value)[:40])
def test_each_violation_has_its_message(in_house: InHouse, parameters: object, message: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "Hi", "parameters": parameters})
        assert reply.status_code == 422
        assert reply.json()["error"] == PREFIX + message
        assert reply.json()["error_type"] == "validation"

    in_house(scenario)


def test_free_text_is_a_response_format(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "Hi", "parameters": {"response_format": {"type": "Text"}}}
        assert (await house.post("/generate", body)).status_code == 200

    in_house(scenario)


def test_a_prompt_over_the_window_is_told_with_its_length(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "x" * 600})
        assert reply.status_code == 422
        assert reply.json()["error"] == PREFIX + "`inputs` must have less than 511 tokens. Given: 600"

    in_house(scenario)


def test_a_stream_has_one_event_a_token_byte_for_byte(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(
            "/generate_stream", {"inputs": "SAY:a\u2028", "parameters": {"details": True, "seed": 0}}
        )
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["x-accel-buffering"] == "no"
        assert reply.headers["x-prompt-tokens"] == "8"
        assert reply.headers["x-queue-time"] == str(round(QUEUE_MS))
        first, *rest = reply.content.split(b"\n\n")
        assert first == (
            b'data: {"token":{"id":97,"text":"a","logprob":-0.5,"special":false,"skipped":false},'
            b'"generated_text":null,"details":null}'
        )
        assert b"\\u2028" in reply.content
        assert "\u2028".encode() not in reply.content
        last = json.loads(rest[-2].removeprefix(b"data: "))
        assert rest[-1] == b""
        assert last["token"] == {"id": 257, "text": "", "logprob": -0.5, "special": True, "skipped": False}
        assert last["generated_text"] == "a\u2028"
        assert last["details"]["finish_reason"] == "eos_token"
        assert last["usage"] == {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
        assert set(last["timings"]) == {
            *("validation_ms", "queue_ms", "adapter_load_ms", "time_to_first_token_ms", "inference_ms", "total_ms"),
            *("time_per_token_ms", "time_per_output_token_ms"),
        }
        texts = [json.loads(event.removeprefix(b"data: "))["token"]["text"] for event in (first, *rest[:-1])]
        assert texts == ["a", "", "", "\u2028", ""]

    in_house(scenario)


def test_tokens_that_drafts_gain_are_skipped_ones(in_house: InHouse) -> None:
    """Two tokens of a step: the second needs no step of its own."""

    async def scenario(house: House) -> None:
        body = {"inputs": "PAIR SAY:abcd", "parameters": {"details": True}}
        marks = [False, True, False, True, False]
        whole = await house.post("/generate", body)
        details = whole.json()["details"]
        assert [token["skipped"] for token in details["tokens"]] == marks
        assert (details["skipped_tokens"], whole.headers["x-skipped-tokens"]) == (2, "2")
        streamed = (await house.post("/generate_stream", body)).content.strip().split(b"\n\n")
        events = [json.loads(event.removeprefix(b"data: ")) for event in streamed]
        assert [event["token"]["skipped"] for event in events] == marks
        assert events[-1]["details"]["skipped_tokens"] == 2
        both = {"details": True, "best_of": 2, "do_sample": True}
        best = await house.post("/generate", {**body, "parameters": both})
        assert (best.json()["details"]["skipped_tokens"], best.headers["x-skipped-tokens"]) == (2, "4")

    in_house(scenario)


def test_a_stream_shows_the_alternatives_it_was_asked_for(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "SAY:ab", "parameters": {"return_k_alternatives": 2}}
        events = (await house.post("/generate_stream", body)).content.strip().split(b"\n\n")
        tokens = [json.loads(event.removeprefix(b"data: "))["token"] for event in events]
        assert [[other["id"] for other in token["alternative_tokens"]] for token in tokens] == [[65, 66]] * 3

    in_house(scenario)


def test_the_last_event_of_a_stream_never_spells_a_special_token(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "SAY:ab", "parameters": {"max_new_tokens": 3, "details": True}}
        *_, last = (await house.post("/generate_stream", body)).content.strip().split(b"\n\n")
        event = json.loads(last.removeprefix(b"data: "))
        assert event["token"]["special"]
        assert event["token"]["text"] == ""
        assert event["details"]["finish_reason"] == "length"
        assert event["generated_text"] == "ab"

    in_house(scenario)


def test_a_failure_before_the_first_token_keeps_its_status(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "Hi", "parameters": {"adapter_id": "missing"}}
        for path in ("/generate_stream", "/generate"):
            reply = await house.post(path, body)
            assert reply.status_code == 404
            assert reply.json() == {
                "error": "Adapter 'missing' was not found in source 'local'",
                "error_type": "generation",
                "code": "adapter_not_found",
            }

    in_house(scenario)


def test_streams_refuse_best_of(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "Hi", "parameters": {"best_of": 2, "do_sample": True}}
        reply = await house.post("/generate_stream", body)
        assert reply.status_code == 422
        assert reply.json()["error"] == PREFIX + "`best_of` != 1 is not supported when streaming tokens"

    in_house(scenario)


def test_a_late_failure_is_an_event_of_a_type_clients_know(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "HOLD", "parameters": {"max_new_tokens": 400}}
        async with calling(house.app, "/generate_stream", body) as caller:
            await caller.chunk()
            await house.link.close()
            last = (await caller.rest()).strip().split(b"\n\n")[-1]
        error = json.loads(last.removeprefix(b"data: "))
        assert error["error_type"] == "overloaded"
        assert error["code"] == "deployment_unavailable"

    in_house(scenario)


def test_a_silent_stream_is_kept_alive_with_comments(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        async with calling(house.app, "/generate_stream", {"inputs": "WAIT"}) as caller:
            assert await caller.chunk() == b":\n\n"
            assert caller.status == 200

    in_house(scenario, stream_head_wait_s=0.01, keepalive_s=0.02)


def test_an_event_too_long_for_clients_leaves_the_text_out(in_house: InHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate_stream", {"inputs": "SAY:" + "y" * 200})
        last = json.loads(reply.content.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
        assert last["generated_text"] == ""
        assert last["generated_text_omitted"] is True

    monkeypatch.setattr(generate, "MAX_EVENT_BYTES", 300)
    in_house(scenario)
