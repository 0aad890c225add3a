"""Records the prompts of mistral-common for conversations with tools, tokenizers v11 and v13, in `mistral_tools.json`.

It needs an environment of its own, as `tests/models/text/record_mistral_common.py` says:

    PYTHONPATH=src:. mistral/bin/python -m tests.server.tools.record_mistral_tools

The package has no vocabulary of these versions. The text of a prompt and its special tokens are those of any: here the
vocabulary of v3 with the special tokens of v13.
"""

import json
import random
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import SpecialTokens, TokenizerVersion
from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV11, InstructTokenizerV13
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

Json = Any  # a JSON value of any type
RECORDED = Path(__file__).with_name("mistral_tools.json")
COUNT = 14
TEXTS = ("Hello", "What is the weather in Ås?", "a\n\nb", "naïve “café”", "{}", "你好", 'say "hi" \\n', "👍🏽", "1 < 2")
VALUES: tuple[Json, ...] = ("Oslo", 'a "b"\\\n', "ü", 3, -2.5, True, None, [], [1, "x"], {"k": [None, {"é": "😀"}]})
RESULTS = ("noon", '{"t": 3, "unit": "°C"}', "", "two\nlines", "[1, 2]")
NAMES = ("get_weather", "now", "find-it")


def tools() -> list[Json]:
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": "Where “é”"}, "x": {}}}
    none = {"type": "object", "properties": {}}
    described = zip(NAMES, ("The weather.", "", "Ünï"), (schema, none, schema), strict=True)
    return [
        {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}
        for name, text, parameters in described
    ]


def conversations(draw: random.Random, count: int) -> Iterator[list[Json]]:
    """Yield conversations of some turns: plain replies, single and parallel calls with and without text, results."""
    for number in range(count):
        messages: list[Json] = [{"role": "system", "content": draw.choice(TEXTS)}] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, 3)):
            messages.append({"role": "user", "content": draw.choice(TEXTS)})
            if draw.random() < 0.7:
                messages += _calls(draw, number)
                if draw.random() < 0.3:
                    messages += _calls(draw, number)
            messages.append({"role": "assistant", "content": draw.choice(TEXTS)})
        yield [*messages, {"role": "user", "content": draw.choice(TEXTS)}] if draw.random() < 0.6 else messages[:-1]


def _calls(draw: random.Random, number: int) -> Iterator[Json]:
    """Yield a message with calls, and their results."""
    called: list[Json] = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        keys = draw.sample(("city", "x", "ü", 'q"'), draw.randint(0, 3))
        arguments = {key: draw.choice(VALUES) for key in keys}
        call_id = "".join(draw.choice("abcXYZ019") for _ in range(9))
        function: Json = {"name": draw.choice(NAMES), "arguments": json.dumps(arguments, ensure_ascii=False)}
        called.append({"id": call_id, "type": "function", "function": function})
    message: Json = {
        "role": "assistant",
        "content": draw.choice(TEXTS) if number % 3 == 0 else None,
        "tool_calls": called,
    }
    yield message
    for call in called:
        name: str = call["function"]["name"]
        yield {"role": "tool", "tool_call_id": call["id"], "name": name, "content": draw.choice(RESULTS)}


def encoder(tokenizer_version: TokenizerVersion, kind: type[InstructTokenizerV11]) -> MistralTokenizer:
    """Return mistral-common's own encoder of a version."""
    given = json.loads((files("mistral_common") / "data" / "tekken_240911.json").read_text(encoding="utf-8"))
    named = [token.value for token in SpecialTokens]
    first = ["<unk>", "<s>", "</s>"]
    ordered = [*first, *(name for name in named if name not in first)]
    specials = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(ordered)]
    config: Json = given["config"]
    sizes = config["default_vocab_size"], config["default_num_special_tokens"]
    tekken = Tekkenizer(given["vocab"], specials, config["pattern"], *sizes, tokenizer_version)
    validator = get_validator(tokenizer_version, mode=ValidationMode.test)
    return MistralTokenizer(kind(tekken), validator, get_normalizer(tokenizer_version, None))


def record() -> None:
    found: Json = {"source": f"mistral-common {version('mistral-common')}", "tools": tools()}
    for name, kind in (("v11", InstructTokenizerV11), ("v13", InstructTokenizerV13)):
        encodes = encoder(TokenizerVersion(name), kind)
        found[name] = [
            {
                "messages": messages,
                "text": encodes.encode_chat_completion(ChatCompletionRequest(messages=messages, tools=tools())).text,
            }
            for messages in conversations(random.Random(5), COUNT)
        ]
    RECORDED.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
