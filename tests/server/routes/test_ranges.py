"""The documented range of each parameter, both ends of it, and what lies just outside."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import House

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
ABOVE_ONE, BELOW_ZERO = math.nextafter(1, 2), math.nextafter(0, -1)
TINY, HUGE = 5e-324, 1.7976931348623157e308
TOP_P = "`top_p` must be > 0.0 and < 1.0"
TYPICAL_P = "`typical_p` must be > 0.0 and < 1.0"
OUTSIDE = "`{}` must be >= -2.0 and <= 2.0"
BIAS = "`logit_bias` must map token ids to numbers from -100 to 100"

Row = tuple[dict[str, Any], str | None]
"""Fields, and the message of their refusal; None: they are accepted."""

SHARED: list[Row] = [
    *(({"top_p": value}, None) for value in (TINY, 0.5, 1.0, 1)),
    *(({"top_p": value}, TOP_P) for value in (BELOW_ZERO, ABOVE_ONE, -1, 2)),
    *(({"top_k": value}, None) for value in (1, 1.0, 10**6, 2**63, 2**64 - 1)),
    *(({"top_k": value}, "`top_k` must be strictly positive") for value in (0, -1)),
    *(({"typical_p": value}, None) for value in (TINY, math.nextafter(1, 0))),
    *(({"typical_p": value}, TYPICAL_P) for value in (0, 1.0, -0.1, 1.1)),
    *(({"min_p": value}, None) for value in (0, 0.5, 1, 1.0)),
    *(({"min_p": value}, "`min_p` must be >= 0.0 and <= 1.0") for value in (BELOW_ZERO, ABOVE_ONE)),
    *(({"repetition_penalty": value}, None) for value in (TINY, 1, HUGE)),
    *(({"repetition_penalty": value}, "`repetition_penalty` must be strictly positive") for value in (0, -1.0)),
    *(({name: value}, None) for name in ("frequency_penalty", "presence_penalty") for value in (-2, -2.0, 0, 2, 2.0)),
    *(
        ({name: value}, OUTSIDE.format(name))
        for name in ("frequency_penalty", "presence_penalty")
        for value in (math.nextafter(-2, -3), math.nextafter(2, 3))
    ),
    ({"temperature": BELOW_ZERO}, "`temperature` must be non-negative"),
    *(({"stop": value}, None) for value in ([], "a", ["a"], list("abcd"), None)),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"stop": ""}, "`stop` must not contain empty strings"),
    ({"stop": ["a", None]}, "`stop`: expected a string or an array of strings, given an array"),
    *(({"stop_token_ids": value}, None) for value in ([0], [258], [258.0], list(range(259)))),
    ({"stop_token_ids": [259]}, "`stop_token_ids`: token ids must be >= 0 and < 259"),
    *(({"allowed_token_ids": value}, None) for value in ([0], [258], [258.0])),
    ({"allowed_token_ids": [259]}, "`allowed_token_ids`: token ids must be >= 0 and < 259"),
    *(({name: value}, None) for name in ("min_tokens", "min_new_tokens") for value in (0, 1, 1.0)),
    *(({"bad_words": value}, None) for value in ([], "a", ["a"], list("abcd"), None)),
    *(({"seed": value}, None) for value in (0, 1.0, 2**63 - 1, 2**63, 2**64 - 1)),
    ({"seed": 2**64}, f"`seed`: expected an integer below 2^64, given {2**64}"),
    *(
        ({name: True}, f"`{name}`: expected {kind}, given a boolean")
        for kind, names in {
            "a number": ("temperature", "top_p", "typical_p", "min_p", "repetition_penalty", "presence_penalty"),
            "an integer": ("top_k", "seed", "best_of"),
        }.items()
        for name in names
    ),
    *(({name: 1.5}, f"`{name}`: expected an integer, given a number") for name in ("top_k", "seed", "best_of")),
    *(({name: "1"}, f"`{name}`: expected a number, given a string") for name in ("temperature", "top_p", "min_p")),
    ({"ignore_eos": 1}, "`ignore_eos`: expected a boolean, given an integer"),
    ({"skip_special_tokens": "x"}, "`skip_special_tokens`: expected a boolean, given a string"),
    ({"include_stop_str_in_output": 0}, "`include_stop_str_in_output`: expected a boolean, given an integer"),
]
OPENAI: list[Row] = [
    *(row for row in SHARED if "best_of" not in row[0]),
    *(({"temperature": value}, None) for value in (0, 0.0, TINY, 1, 2, 2.0)),
    *(({"temperature": value}, "`temperature` must be <= 2.0") for value in (math.nextafter(2, 3), 3)),
    *(({"top_p": value}, None) for value in (0, 0.0)),  # OpenAI's range begins at 0
    *(({"n": value}, None) for value in (1, 8, 8.0)),
    *(({"n": value}, f"`n` must be >= 1 and <= 8. Given: {value}") for value in (0, 9, -1)),
    ({"n": True}, "`n`: expected an integer, given a boolean"),
    *(({"seed": value}, None) for value in (-1, -(2**63))),
    ({"seed": -(2**63) - 1}, f"`seed` must be >= {-(2**63)} and <= {2**64 - 1}. Given: {-(2**63) - 1}"),
    *(({"logit_bias": {"65": value}}, None) for value in (-100, 100, 0, 0.5, None)),
    *(({"logit_bias": {"65": value}}, BIAS) for value in (math.nextafter(-100, -101), math.nextafter(100, 101))),
    *(({"logit_bias": {key: 1}}, None) for key in ("0", "258")),
    ({"logit_bias": {"259": 1}}, "`logit_bias`: token ids must be < 259"),
    *(({"logit_bias": {key: 1}}, BIAS) for key in ("-1", "1.0", "a", "", "٣")),
    ({"logit_bias": {"65": True}}, "`65`: expected a number, given a boolean"),
    *(({"max_tokens": value}, None) for value in (1, 1.0, 100)),
    ({"max_tokens": 0}, "`max_tokens` must be strictly positive"),
    ({"max_tokens": -1}, "`max_tokens`: expected an integer >= 0, given -1"),
    *(({"truncate_prompt_tokens": value}, None) for value in (-1, 1, 511)),
    *(({"truncate_prompt_tokens": value}, "`truncate_prompt_tokens` must be -1, or >= 1") for value in (0, -2, 512)),
]
OF_COMPLETIONS: list[Row] = [
    *OPENAI,
    *(({"max_tokens": value, "echo": True}, None) for value in (0, 0.0, 1)),
    ({"max_tokens": 0, "echo": False}, "`max_tokens` must be strictly positive"),
    *(({"logprobs": value}, None) for value in (0, 5, 20, 20.0)),
    *(({"logprobs": value}, f"`logprobs` must be >= 0 and <= 20. Given: {value}") for value in (-1, 21)),
    *(({"best_of": value, "n": 2}, None) for value in (2, 8)),
    *(({"best_of": value, "n": 2}, f"`best_of` must be >= `n` and <= 8. Given: {value}") for value in (1, 9)),
    *(({"prompt": prompt, "max_tokens": 1}, None) for prompt in ([0], [258], "x" * 511, ["x"] * 3)),
    *(({"prompt": prompt, "max_tokens": 1}, None) for prompt in ([65.0], [65, 66.0], [[65.0], [66]])),
    *(({"prompt": prompt}, "`prompt`: expected a string") for prompt in ([65.5], [[65.5]], [True], [65, True])),
    *(({"prompt": prompt}, "`prompt`: token ids must be >= 0 and < 259") for prompt in ([259], [-1])),
    ({"prompt": "x" * 512}, "`prompt` must have less than 511 tokens. Given: 512"),
    ({"prompt": "x", "max_tokens": 511}, None),
    ({"prompt": "x", "max_tokens": 512}, "`prompt` tokens + `max_tokens` must be <= 512"),
]
OF_CHAT: list[Row] = [
    *OPENAI,
    *(({"top_logprobs": value, "logprobs": True}, None) for value in (0, 20, 20.0)),
    *(
        ({"top_logprobs": value, "logprobs": True}, f"`top_logprobs` must be >= 0 and <= 20. Given: {value}")
        for value in (-1, 21)
    ),
    ({"logprobs": 1}, "`logprobs`: expected a boolean, given an integer"),
    *(({"max_completion_tokens": value}, None) for value in (1, 504)),
    ({"max_completion_tokens": 0}, "`max_completion_tokens` must be strictly positive"),
    *(({"max_completion_tokens": 1, "max_tokens": value}, None) for value in (1, 1.0, 10**9)),
    ({"max_completion_tokens": 1, "max_tokens": 0}, "`max_tokens` must be strictly positive"),
    ({"max_completion_tokens": 1, "max_tokens": "2"}, "`max_tokens`: expected an integer, given a string"),
    ({"max_completion_tokens": 505}, "`messages` tokens + `max_completion_tokens` must be <= 512"),
]
SAMPLED = {"do_sample": True}
OF_NATIVE: list[Row] = [
    *(row for row in SHARED if "best_of" not in row[0]),
    *(({"temperature": value}, None) for value in (0, TINY, 1, 2, 1000.0)),
    *(({"top_p": value}, TOP_P) for value in (0, 0.0)),
    ({"seed": -1}, "`seed`: expected an integer >= 0, given -1"),
    *(({"max_new_tokens": value}, None) for value in (1, 510, 511.0, 10**9)),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    *(({"best_of": value, **SAMPLED}, None) for value in (1, 2, 2.0)),
    *(({"best_of": value, **SAMPLED}, f"`best_of` must be > 0 and <= 2. Given: {value}") for value in (0, 3, -1)),
    *(({"truncate": value}, None) for value in (1, 511)),
    *(
        ({"truncate": value}, f"`truncate` must be strictly positive and less than 511. Given: {value}")
        for value in (0, 512)
    ),
    *(({"return_k_alternatives": value}, None) for value in (1, 20)),
    ({"return_k_alternatives": 0}, "`return_k_alternatives` must be strictly positive"),
    ({"return_k_alternatives": 21}, "`return_k_alternatives` must be <= 20. Given: 21"),
    *(
        ({"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "ties", "density": value}}, None)
        for value in (TINY, 1, 1.0)
    ),
    *(
        (
            {"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "ties", "density": value}},
            "`density` must be > 0.0 and <= 1.0 for `ties`",
        )
        for value in (0, ABOVE_ONE)
    ),
]
ROUTES: dict[str, tuple[list[Row], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    COMPLETIONS: (OF_COMPLETIONS, lambda fields: {"prompt": "Hi", "max_tokens": 2, **fields}),
    CHAT: (OF_CHAT, lambda fields: {"messages": MESSAGES, "max_tokens": 2, **fields}),
    "/generate": (OF_NATIVE, lambda fields: {"inputs": "Hi", "parameters": {"max_new_tokens": 2, **fields}}),
}


@pytest.mark.parametrize("path", ROUTES)
def test_each_range_holds_at_both_ends(in_house: InHouse, path: str) -> None:
    rows, body_of = ROUTES[path]

    async def scenario(house: House) -> None:
        for fields, message in rows:
            reply = await house.post(path, body_of(fields))
            if message is None:
                assert reply.status_code == 200, (fields, reply.text)
                continue
            assert reply.status_code == (422 if path == "/generate" else 400), (fields, reply.text)
            error = reply.json()["error"]
            told = error if isinstance(error, str) else error["message"]
            assert told.removeprefix("Input validation error: ").startswith(message), (fields, told)

    in_house(scenario)


def test_a_top_p_of_zero_keeps_the_likeliest_token_alone(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post(COMPLETIONS, {"prompt": "Hi", "top_p": 0, "top_k": 5})
        sampling = house.engine.submitted[-1].sampling
        assert (sampling.top_k, sampling.top_p) == (1, 1.0)

    in_house(scenario)


def test_every_limit_of_the_operator_s_is_inclusive(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for n, status in ((1, 200), (2, 200), (3, 400)):
            assert (await house.post(COMPLETIONS, {"prompt": "Hi", "n": n, "max_tokens": 1})).status_code == status
        for stop, status in ((["a"], 200), (["a", "b"], 400)):
            assert (await house.post(COMPLETIONS, {"prompt": "Hi", "stop": stop})).status_code == status
        for best_of, status in ((1, 200), (2, 422)):
            reply = await house.post("/generate", {"inputs": "Hi", "parameters": {"best_of": best_of, **SAMPLED}})
            assert reply.status_code == status

    in_house(scenario, max_n=2, max_stop_sequences=1, max_best_of=1)
