"""The prompt formats of the known bases, character for character those of transformers, on generated conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from manylora.errors import TemplateFailed
from manylora.models.fetch.known_bases import KNOWN_BASES
from manylora.models.text.tokenizer import Tokenizer
from tests.models.text.chat_formats import ALTERNATE, FORMATS, KNOWN, ChatFormat
from tests.models.tiny_tokenizers import save_byte_level, save_sentencepiece

Conversation = list[dict[str, str]]
CONTENTS = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="ab \n\t<s>/[INST]{}%|", max_size=16),
    st.sampled_from(
        [
            *("", " ", "\n", " the  quick ", "hello\n\n", "\u00a0né\u2028", "👍🏽 你好", "\u0000"),
            *("<s>", "a</s>b", "</s><s>[INST] hi [/INST]", "<step>", "Source: user\n\n ", "<<SYS>>\nx\n<</SYS>>\n\n"),
            *("<|im_end|>\n<|im_start|>system\nx", "<|user|>\nhi</s>", "{{ 7 * 7 }}", "{% if %}", "{# #}"),
            *("<think>\n\nhm\n</think>\n\nyes", "<think></think>", "</think>", "<|eot_id|>", "<|begin_of_text|>"),
        ]
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Users and assistants by turns, maybe after a system message; the last message may be of either."""
    leading = ["system"] if draw(st.booleans()) else []
    roles = [*leading, *(("user", "assistant") * 3)[: draw(st.integers(1, 6))]]
    return [{"role": role, "content": draw(CONTENTS)} for role in roles]


@pytest.fixture(scope="module", params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base's folder with the format of its name, whose special tokens are in the vocabulary."""
    directory, chat = tmp_path_factory.mktemp("formats") / str(request.param), FORMATS[request.param]
    directory.mkdir()
    save = save_byte_level if chat.bos != "<s>" else save_sentencepiece
    save(directory)
    library = Library.from_file(str(directory / "tokenizer.json"))
    library.add_special_tokens(["<step>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"])
    library.save(str(directory / "tokenizer.json"))
    named = {"bos_token": chat.bos, "eos_token": chat.eos, "chat_template": chat.template}
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", **named}))
    return directory


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatFormat:
    return FORMATS[folder.name]


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:  # transformers is not type-checked here
    return AutoTokenizer.from_pretrained(folder)


@given(messages=conversations(), prompting=st.booleans())
@settings(max_examples=60)
def test_a_prompt_is_the_formats_own_and_transformers(
    chat: ChatFormat, ours: Tokenizer, oracle: Any, messages: Conversation, prompting: bool
) -> None:
    if not chat.has_system and messages[0]["role"] == "system":
        messages = messages[1:]
    prompt = ours.apply_chat_template(messages, add_generation_prompt=prompting)
    assert prompt == chat.text(messages, prompting=prompting)
    assert prompt == oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)
    expected = oracle.apply_chat_template(messages, add_generation_prompt=prompting)["input_ids"]
    assert ours.encode(prompt, add_special_tokens=False) == expected


@given(roles=st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=5))
@settings(max_examples=60)
def test_an_order_of_roles_is_refused_where_transformers_refuses_it(
    chat: ChatFormat, ours: Tokenizer, oracle: Any, roles: list[str]
) -> None:
    messages = [{"role": role, "content": f"text {index}"} for index, role in enumerate(roles)]
    refusal = None
    try:
        expected = oracle.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        refusal = f"the chat template refused the messages: {error}"
    if refusal is None:
        assert ours.apply_chat_template(messages, add_generation_prompt=False) == expected
        return
    with pytest.raises(TemplateFailed) as caught:
        ours.apply_chat_template(messages, add_generation_prompt=False)
    assert caught.value.message == refusal


def test_a_format_that_alternates_says_so(chat: ChatFormat, ours: Tokenizer) -> None:
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    if not chat.refuses_order:
        assert ours.apply_chat_template(twice) == chat.text(twice, prompting=True)
        return
    with pytest.raises(TemplateFailed, match=f"{ALTERNATE}|roles must alternate"):
        ours.apply_chat_template(twice)


def test_the_begin_token_comes_once(chat: ChatFormat, ours: Tokenizer) -> None:
    begin = ours.token_id("<s>")
    if begin is None:
        return
    ids = ours.encode(ours.apply_chat_template([{"role": "user", "content": "hello"}]), add_special_tokens=False)
    assert ids.count(begin) == (0 if chat.text.__name__ == "zephyr" else 1)
    assert ours.encode("hello").count(begin) == 1


def test_the_page_of_formats_is_met(chat: ChatFormat) -> None:
    """The functions that stand for the formats, on the conversation of the page."""
    messages = [{"role": role, "content": f"{{{role}}}"} for role in ("system", "user", "assistant", "user")]
    expected = {
        "llama_2": "<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {assistant} </s><s>[INST] {user} [/INST]",
        "code_llama_70b": "<s>Source: system\n\n {system} <step> Source: user\n\n {user} <step> Source: assistant\n\n "
        "{assistant} <step> Source: user\n\n {user} <step> Source: assistant\nDestination: user\n\n ",
        "mistral": "<s>[INST] {system}\n\n{user} [/INST] {assistant}</s>[INST] {user} [/INST]",
        "mistral_without_system": "<s>[INST] {user} [/INST]{assistant}</s>[INST] {user} [/INST]",
        "zephyr": "<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n{assistant}</s>\n<|user|>\n{user}"
        "</s>\n<|assistant|>\n",
        "llama_3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "{assistant}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "chatml": "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        "{assistant}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    }
    expected["qwen_3"] = expected["chatml"]
    given = messages if chat.has_system else messages[1:]
    assert chat.text(given, prompting=True) == expected[chat.text.__name__]


def test_each_base_of_the_catalog_has_a_tested_format_or_none() -> None:
    assert list(KNOWN) == [base.name for base in KNOWN_BASES]
    assert {name for name in KNOWN.values() if name is not None} <= FORMATS.keys()
    without = {base.name for base in KNOWN_BASES if "no chat template" in base.summary}
    assert without == {name for name, chat in KNOWN.items() if chat is None}
