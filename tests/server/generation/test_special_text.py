"""Special tokens, and tokens that are part of a character, wherever they become text."""

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.server.conftest import House
from tests.server.tiny_tokenizer import BOS, EOS, UNK

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BYTE_B = ord("b")


def events(content: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in content.decode().strip().split("\n\n")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def completed(house: House, prompt: object, **fields: Any) -> dict[str, Any]:
    """The first choice of a completion, which its stream must equal, with its usage."""
    body = {"prompt": prompt, "max_tokens": 40, "seed": 0, **fields}
    reply = await house.post(COMPLETIONS, body)
    assert reply.status_code == 200, reply.text
    streamed = await house.post(COMPLETIONS, {**body, "stream": True, "stream_options": {"include_usage": True}})
    found: dict[str, Any] = reply.json()
    *chunks, last = events(streamed.content)
    pieces = [chunk["choices"][0] for chunk in chunks]
    (choice,) = found["choices"]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert last["usage"] == found["usage"]
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs") if choice["logprobs"] else ():
        merged = [item for piece in pieces if piece["logprobs"] for item in piece["logprobs"][name]]
        assert merged == choice["logprobs"][name]
    return {**choice, "completion_tokens": found["usage"]["completion_tokens"]}


async def chatted(house: House, text: str, **fields: Any) -> dict[str, Any]:
    """The choice of a chat completion, which its stream must equal."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 40, "seed": 0, **fields}
    reply = await house.post(CHAT, body)
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    pieces = [chunk["choices"][0] for chunk in events((await house.post(CHAT, {**body, "stream": True})).content)]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == choice["message"]["content"]
    if choice["logprobs"]:
        merged = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert merged == choice["logprobs"]["content"]
    return choice


async def generated(house: House, inputs: str, **parameters: Any) -> dict[str, Any]:
    """A LoRAX-style reply, which its stream must equal."""
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 40, "details": True, **parameters}}
    reply = await house.post("/generate", body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    streamed = events((await house.post("/generate_stream", body)).content)
    assert streamed[-1]["generated_text"] == found["generated_text"]
    assert streamed[-1]["details"]["finish_reason"] == found["details"]["finish_reason"]
    assert len(streamed) == found["details"]["generated_tokens"]
    shown = [event["token"] for event in streamed]
    assert "".join(token["text"] for token in shown if not token["special"]) == found["generated_text"]
    return found


STOPS = [  # (stop, text without it, native text, tokens generated)
    ("<unk>", "ab", "ab", 3),
    (["zz", "<unk>"], "ab", "ab", 3),
    ("b<unk>", "a", "ab", 3),
    ("b<unk>c", "a", "abc", 4),
    ("<unk>cd", "ab", "abcd", 5),
    ("bc", "a", "abc", 4),  # as the text is shown
]


@pytest.mark.parametrize(("stop", "text", "native", "count"), STOPS)
def test_a_stop_string_may_name_a_special_token(
    in_house: InHouse, stop: object, text: str, native: str, count: int
) -> None:
    async def scenario(house: House) -> None:
        choice = await completed(house, "SAY:ab<unk>cdef", stop=stop)
        assert (choice["text"], choice["finish_reason"], choice["completion_tokens"]) == (text, "stop", count)
        assert (await chatted(house, "SAY:ab<unk>cdef", stop=stop))["message"]["content"] == text
        reply = await generated(house, "SAY:ab<unk>cdef", stop=stop)
        assert reply["generated_text"] == native
        assert reply["details"]["finish_reason"] == "stop_sequence"
        assert reply["details"]["generated_tokens"] == count

    in_house(scenario)


def test_a_part_of_a_special_token_that_is_not_shown_stops_nothing(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for stop in ("unk", "<", ">c"):
            choice = await completed(house, "SAY:ab<unk>cd", stop=stop)
            assert (choice["text"], choice["completion_tokens"]) == ("abcd", 6)

    in_house(scenario)


def test_an_ignored_end_of_sequence_token_is_a_stop_string_too(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for name in ("ignore_eos", "ignore_eos_token"):
            choice = await completed(house, "SAY:ab", stop="</s>", **{name: True})
            assert (choice["text"], choice["finish_reason"], choice["completion_tokens"]) == ("ab", "stop", 3)
            reply = await generated(house, "SAY:ab", stop="</s>", **{name: True})
            assert (reply["generated_text"], reply["details"]["finish_reason"]) == ("ab", "stop_sequence")

    in_house(scenario)


def test_special_tokens_are_shown_where_they_are_asked_for(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for skip, text in ((None, "abcd"), (True, "abcd"), (False, "ab<unk>cd")):
            choice = await completed(house, "SAY:ab<unk>cd", skip_special_tokens=skip, logprobs=0)
            assert choice["text"] == text
            assert "".join(choice["logprobs"]["tokens"]) == text
            assert (await chatted(house, "SAY:ab<unk>cd", skip_special_tokens=skip))["message"]["content"] == text
        body = {"inputs": "SAY:ab<unk>cd", "parameters": {"skip_special_tokens": False, "details": True}}
        reply = (await house.post("/generate", body)).json()
        assert reply["generated_text"] == "ab<unk>cd"
        assert [token["special"] for token in reply["details"]["tokens"]] == [False, False, True, False, False, True]
        assert (await completed(house, "SAY:ab<unk>cd", skip_special_tokens=False, stop="nk>c"))["text"] == "ab<u"

    in_house(scenario)


def test_a_stop_token_ends_the_text_before_it(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for tokens in ([BYTE_B], [1, float(BYTE_B)]):
            choice = await completed(house, "SAY:abc", stop_token_ids=tokens, logprobs=1)
            assert (choice["text"], choice["finish_reason"], choice["completion_tokens"]) == ("a", "stop", 2)
            assert choice["logprobs"]["tokens"] == ["a"]
            reply = await generated(house, "SAY:abc", stop_token_ids=tokens)
            assert (reply["generated_text"], reply["details"]["finish_reason"]) == ("a", "eos_token")
            assert reply["details"]["generated_tokens"] == 2
            assert reply["details"]["tokens"][-1] | {"logprob": 0} == {
                "id": BYTE_B,
                "text": "b",
                "logprob": 0,
                "special": True,
                "skipped": False,
            }
        assert house.engine.submitted[-1].stop.stop_token_ids == (1, BYTE_B)
        assert (await completed(house, "SAY:ab<unk>c", stop_token_ids=[UNK]))["text"] == "ab"
        assert (await completed(house, "SAY:abc", stop_token_ids=[]))["text"] == "abc"

    in_house(scenario)


def test_what_ended_the_text_is_kept_where_that_is_asked_for(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        keep: dict[str, Any] = {"include_stop_str_in_output": True}
        assert (await completed(house, "SAY:abcd", stop="bc", **keep))["text"] == "abc"
        assert (await completed(house, "SAY:abcd", stop_token_ids=[BYTE_B], logprobs=0, **keep))["text"] == "ab"
        assert (await generated(house, "SAY:abcd", stop_token_ids=[BYTE_B], **keep))["generated_text"] == "ab"
        assert (await generated(house, "SAY:abcd", stop="b", **keep))["generated_text"] == "ab"
        assert (await completed(house, "SAY:ab<unk>c", stop="<unk>", **keep))["text"] == "ab"
        shown: dict[str, Any] = {**keep, "skip_special_tokens": False}
        assert (await completed(house, "SAY:ab<unk>c", stop="<unk>", **shown))["text"] == "ab<unk>"
        assert (await completed(house, "SAY:ab", **shown))["text"] == "ab</s>"
        assert (await completed(house, "SAY:ab", skip_special_tokens=False))["text"] == "ab"

    in_house(scenario)


def test_a_stop_token_that_spends_the_budget_is_no_part_of_the_text(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        choice = await completed(house, "SAY:abc", stop_token_ids=[BYTE_B], max_tokens=2)
        assert (choice["text"], choice["finish_reason"], choice["completion_tokens"]) == ("a", "length", 2)
        shown = await completed(house, "SAY:abc", skip_special_tokens=False, max_tokens=4)
        assert (shown["text"], shown["finish_reason"]) == ("abc", "length")

    in_house(scenario)


TEXT = "né→🦜x"


def test_log_probabilities_tell_each_token_s_own_bytes(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        choice = await chatted(house, f"SAY:{TEXT}", logprobs=True, top_logprobs=8)
        entries = choice["logprobs"]["content"]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"] == TEXT
        assert [entry["token"] for entry in entries][:4] == ["n", "\\xc3", "\\xa9", "\\xe2"]
        others = entries[0]["top_logprobs"]
        assert [other["bytes"] for other in others] == [*([byte] for byte in range(250, 256)), [*b"<s>"], [*b"</s>"]]
        assert [other["token"] for other in others][-3:] == ["\\xff", "<s>", "</s>"]
        told = (await completed(house, f"SAY:{TEXT}", logprobs=2))["logprobs"]
        assert told["tokens"][:3] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
        assert told["text_offset"] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]
        assert set(told["top_logprobs"][1]) == {"bytes:\\xc3", "bytes:\\xfa", "bytes:\\xfb"}

    def with_bytes(scenario: Callable[[House], Any]) -> Callable[[House], Any]:
        async def run(house: House) -> None:
            house.engine.first_alternative = 250
            await scenario(house)

        return run

    in_house(with_bytes(scenario))


def test_a_character_that_is_never_finished_shows_as_one_replacement(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        choice = await completed(house, "SAY:a→b", max_tokens=3, logprobs=0)
        assert (choice["text"], choice["completion_tokens"]) == ("a\ufffd", 3)
        assert choice["logprobs"]["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x86"]
        assert (await generated(house, "SAY:a→b", max_new_tokens=3))["generated_text"] == "a\ufffd"
        stopped = await completed(house, "SAY:a→b", stop_token_ids=["→".encode()[1]])
        assert stopped["text"] == "a\ufffd"

    in_house(scenario)


def test_stop_strings_of_split_characters(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for stop, text in (("→", "né"), ("é→🦜", "n"), ("🦜", "né→"), ("x", "né→🦜")):
            choice = await completed(house, f"SAY:{TEXT}yz", stop=stop, logprobs=0)
            assert choice["text"] == text
            assert b"".join(map(bytes_of, choice["logprobs"]["tokens"])).decode() == text
            assert (await chatted(house, f"SAY:{TEXT}yz", stop=stop))["message"]["content"] == text

    in_house(scenario)


def bytes_of(token: str) -> bytes:
    """A token of /v1/completions as bytes."""
    spelled = token.removeprefix("bytes:")
    return spelled.encode().decode("unicode_escape").encode("latin-1") if spelled != token else token.encode()


def test_every_stream_equals_its_whole_reply(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        texts = ("ab<unk>→<unk>c", "<unk><s>é", "🦜<s>x")
        stops = (None, "<unk>", "→<unk>", "é", "x", "<s>x")
        for text, stop, skip, keep in product(texts, stops, (True, False), (True, False)):
            fields = {"stop": stop, "skip_special_tokens": skip, "include_stop_str_in_output": keep}
            choice = await completed(house, f"SAY:{text}", logprobs=1, **fields)
            if not keep and stop is None:
                assert choice["text"] == (text if not skip else text.replace("<unk>", "").replace("<s>", ""))

    in_house(scenario)


def test_the_echo_of_token_ids_shows_their_special_tokens(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        ids = [BOS, *b"SAY:", UNK, *b"z"]
        assert (await completed(house, ids, echo=True))["text"] == "<s>SAY:<unk>zz"
        assert (await completed(house, "<s>SAY:z", echo=True))["text"] == "<s>SAY:zz"
        assert (await completed(house, [*b"SAY:a", EOS], echo=True))["text"] == "SAY:a</s>a"

    in_house(scenario)


def test_pieces_of_the_tokenizer_are_told_for_bytes_too(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        told = (await house.post("/tokenize", {"inputs": "a é<unk>"})).json()
        assert [token["text"] for token in told] == ["a", "Ġ", "Ã", "©", "<unk>"]
        assert [(token["start"], token["stop"]) for token in told] == [(0, 1), (1, 2), (2, 3), (2, 3), (3, 8)]

    in_house(scenario)


def test_the_last_event_shows_a_special_token_that_the_text_has(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        parameters = {"skip_special_tokens": False, "max_new_tokens": 3}
        last = events(
            (await house.post("/generate_stream", {"inputs": "SAY:ab<unk>c", "parameters": parameters})).content
        )[-1]
        assert (last["token"]["text"], last["generated_text"]) == ("<unk>", "ab<unk>")

    in_house(scenario)


def test_the_echo_of_a_prompt_alone_generates_nothing(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for prompt in ("SAY:ab", [BOS, *b"SAY:ab"]):
            choice = await completed(house, prompt, echo=True, max_tokens=0)
            shown = prompt if isinstance(prompt, str) else "<s>SAY:ab"
            assert (choice["text"], choice["finish_reason"], choice["completion_tokens"]) == (shown, "length", 0)
        reply = await house.post(COMPLETIONS, {"prompt": ["a", "bc"], "echo": True, "max_tokens": 0, "n": 2})
        assert [choice["text"] for choice in reply.json()["choices"]] == ["a", "a", "bc", "bc"]
        assert reply.json()["usage"]["prompt_tokens"] == 3
        assert (reply.headers["x-generated-tokens"], reply.headers["x-total-tokens"]) == ("0", "3")

    in_house(scenario)


def test_a_stop_string_within_the_least_tokens_stays_in_the_text(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for least, text in ((0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "ababcd")):
            choice = await completed(house, "SAY:ababcd", stop="ab", min_tokens=least, logprobs=0)
            assert choice["text"] == text
            reply = await generated(house, "SAY:ababcd", stop="ab", min_new_tokens=least)
            assert reply["generated_text"] == (text if least == 4 else text + "ab")

    in_house(scenario)
