"""A base's text files: the places of its template, its special tokens and ends, and tokens that fit its table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from manylora.errors import ModelNotFound, ModelUnsupported, TemplateFailed
from manylora.models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import save_sentencepiece

HI = [{"role": "user", "content": "hi"}]
Json = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_sentencepiece(tmp_path)
    named = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    return tmp_path


def settings(base: Path, **changes: object) -> None:
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def jinja(base: Path, text: str) -> None:
    (base / "chat_template.jinja").write_text(text)


def additional(base: Path, name: str, text: str) -> None:
    (base / "additional_chat_templates").mkdir(exist_ok=True)
    (base / "additional_chat_templates" / f"{name}.jinja").write_text(text)


def in_settings(base: Path) -> None:
    settings(base, chat_template="settings {{ eos_token }}")


def listed(base: Path) -> None:
    named = {"default": "listed {{ bos_token }}", "tool_use": "tools", "rag": "rag"}
    settings(base, chat_template=[{"name": name, "template": text} for name, text in named.items()])


def in_a_file(base: Path) -> None:
    in_settings(base)
    jinja(base, "file {{ bos_token }}")


def in_files(base: Path) -> None:
    listed(base)
    jinja(base, "file {{ bos_token }}")
    additional(base, "tool_use", "tools of a file")


def in_additional_files_alone(base: Path) -> None:
    in_settings(base)
    additional(base, "tool_use", "tools of a file")


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", [in_settings, listed, in_a_file, in_files, in_additional_files_alone])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
def test_a_template_is_found_where_transformers_finds_it(
    base: Path, write: Callable[[Path], None], tools: list[Json] | None
) -> None:
    write(base)
    oracle, ours = AutoTokenizer.from_pretrained(base), Tokenizer(base)
    if write is in_additional_files_alone and tools is None:
        with pytest.raises(ValueError, match="no default specified"):
            oracle.apply_chat_template(HI, tokenize=False)
        with pytest.raises(TemplateFailed, match="no chat template"):
            ours.apply_chat_template(HI)
        assert not ours.has_chat_template
        return
    expected = oracle.apply_chat_template(HI, tools=tools, tokenize=False)
    assert ours.apply_chat_template(HI, tools=tools) == expected


def test_a_template_of_a_processor_is_used_where_there_is_no_other_file(base: Path) -> None:
    in_settings(base)
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert Tokenizer(base).apply_chat_template(HI) == "processor"
    jinja(base, "file")
    assert Tokenizer(base).apply_chat_template(HI) == "file"


def test_the_operators_template_replaces_the_default_alone(base: Path) -> None:
    listed(base)
    tools = [{"type": "function"}]
    ours = Tokenizer(base, chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert (ours.apply_chat_template(HI), ours.apply_chat_template(HI, tools=tools)) == ("<s>hi", "tools")
    with pytest.raises(ModelUnsupported, match="the chat template `default` is not usable"):
        Tokenizer(base, chat_template="{% for %}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "`chat_template` is neither a text nor a list"),
        ([{"name": "default"}], "`chat_template` is neither a text nor a list"),
        ([{"name": "default", "template": 7}], "a template that is no text"),
        ("{% for %}", "the chat template `default` is not usable: the chat template does not compile"),
    ],
)
def test_a_template_that_is_none_is_refused_at_the_start(base: Path, value: object, said: str) -> None:
    settings(base, chat_template=value)
    with pytest.raises(ModelUnsupported, match=said):
        Tokenizer(base)


def test_a_base_without_a_template_serves_text_alone(base: Path) -> None:
    ours = Tokenizer(base, model_id="Llama-2-7b")
    assert not ours.has_chat_template
    with pytest.raises(TemplateFailed, match="model `Llama-2-7b` has no chat template"):
        ours.apply_chat_template(HI)
    assert ours.encode("hello")


# ── special tokens and ends ──────────────────────────────────────────────────────────────────────────────────────────


def test_older_files_name_the_special_tokens_too(base: Path) -> None:
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<unk>", "chat_template": "{{ eos_token }}"}))
    (base / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}))
    oracle, ours = AutoTokenizer.from_pretrained(base), Tokenizer(base)
    assert ours.apply_chat_template(HI) == oracle.apply_chat_template(HI, tokenize=False) == "</s>"
    assert ours.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    settings(base, added_tokens_decoder={})  # a newer file, beside which the map counts for nothing
    assert Tokenizer(base).named_tokens == {"eos_token": "<unk>"}


CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 32,
    "vocab_size": 400,
}


def config(base: Path, **changes: object) -> None:
    (base / "config.json").write_text(json.dumps({**CONFIG, **changes}))


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [
        (None, "</s>", (2,)),
        (2, "</s>", (2,)),
        ([2, 9], "</s>", (2, 9)),
        (9, "</s>", (2, 9)),  # the base's end, and the chat tokenizer's
        (9, "no such token", (9,)),
        (None, None, ()),
    ],
)
def test_a_generation_ends_at_the_configurations_tokens_and_the_tokenizers_own(
    base: Path, generation: object, own: str | None, expected: tuple[int, ...]
) -> None:
    config(base)
    settings(base, eos_token=own)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert Tokenizer(base).eos_ids == expected


def test_the_flags_of_the_settings_win_over_those_of_the_tokenizer(base: Path) -> None:
    library = Library.from_file(str(base / "tokenizer.json"))
    library.add_tokens([AddedToken("<step>", normalized=False), AddedToken("<plain>", normalized=False)])
    library.save(str(base / "tokenizer.json"))
    first = library.get_vocab_size() - 2
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    settings(
        base,
        added_tokens_decoder={
            str(first): {"content": "<step>", **flags},
            str(first + 2): {"content": "<new>", **flags},
        },
    )
    oracle, ours = AutoTokenizer.from_pretrained(base), Tokenizer(base)
    for text in ("hello <step> the", "<plain><step><new> the", "  <new>"):
        ids = oracle(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert {first, first + 2} < ours.special_ids


# ── the table of embeddings ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_vocabulary_with_more_tokens_than_rows_is_refused_by_its_first(base: Path) -> None:
    library = Library.from_file(str(base / "tokenizer.json"))
    size = library.get_vocab_size(with_added_tokens=False)
    config(base, vocab_size=size - 2)
    with pytest.raises(ModelUnsupported) as caught:
        Tokenizer(base)
    last = library.id_to_token(size - 2)
    assert f"2 tokens have no row (the first is {last!r}, with the id {size - 2})" in caught.value.message


def test_added_tokens_without_rows_are_named_at_the_start(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = Tokenizer(base).vocab_size
    config(base, vocab_size=size)
    library = Library.from_file(str(base / "tokenizer.json"))
    library.add_tokens(["<pad>"])
    library.save(str(base / "tokenizer.json"))
    assert Tokenizer(base).encode("<pad>", add_special_tokens=False) == [size]
    assert f"1 token has no row (the first is '<pad>', with the id {size})" in caplog.text


def test_rows_without_a_token_have_no_text(base: Path) -> None:
    config(base, vocab_size=400)
    ours = Tokenizer(base)
    assert ours.vocab_size < 399
    assert (ours.token_bytes(399), ours.piece(399), ours.decode([399])) == (b"", None, "")
    hello = ours.encode("hello", add_special_tokens=False)
    stream = ours.stream()
    assert "".join(stream.push(token_id) for token_id in (399, *hello, 399)) == "hello"


def test_a_sentencepiece_file_alone_is_refused_with_the_command_that_converts_it(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"has no tokenizer\.json; fetch the model again"):
        Tokenizer(base)
    (base / "tokenizer.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(ModelNotFound, match=r"tokenizer\.model and no tokenizer\.json\. .*save_pretrained"):
        Tokenizer(base)
