"""Tokenizers of GGUF metadata: the ids of the model's own tokenizer, for random and awkward texts."""

import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from manylora.errors import ModelUnsupported
from manylora.models.gguf.model import GgufFields
from manylora.models.gguf.parts import read_model
from manylora.models.gguf.text import write_tokenizer
from tests.models.gguf.tiny_gguf import Change, tokenizer_of
from tests.models.tiny_tokenizers import CORPUS, save_sentencepiece

TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "the quick brown fox's dog, it'S 12345 and 6\n\n\tend\r\n",
    "naïve café – 你好 👍🏽 １２３ ｶﾞ",
    "e\u0301 is not é",
    "<s>special</s> and <|end|> and a b",
    "hello<|end|>  hello",
    "▁ is a piece",
    "DON'T we'LL I'm 1st 2,000.50",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def texts() -> list[str]:
    """The awkward texts, and random mixtures of their characters."""
    draw = random.Random(0)
    alphabet = "".join(TEXTS)
    return TEXTS + ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(200)]


def own_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of a family as its own repository has it, trained on the spot."""
    library = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    if name == "qwen2":
        library = _qwen2()
    if name == "llama-bpe":
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if name in ("gpt-2", "smollm"):
        digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator([*CORPUS, "12 123 1234 it's don't"] * 2, trainer)
    library.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<|end|>", "<|start|>")]
    )
    library.add_tokens([AddedToken("a b", normalized=False)])
    if name == "llama-bpe":
        start = library.token_to_id("<|start|>")
        library.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", start)]
        )
    return library


def _qwen2() -> Tokenizer:
    """Qwen 2's pipeline as transformers makes it."""
    from transformers import Qwen2Tokenizer

    library = Tokenizer.from_str(Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.to_str())
    empty = Tokenizer(models.BPE())
    empty.normalizer, empty.pre_tokenizer = library.normalizer, library.pre_tokenizer
    return empty


def converted(directory: Path, tokenizer: Change) -> Tokenizer:
    """Write a GGUF file with nothing but metadata, and read its tokenizer back."""
    writer = gguf.GGUFWriter(directory / "x.gguf", "llama")
    writer.add_context_length(64)
    tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = directory / "converted"
    out.mkdir()
    write_tokenizer(out, GgufFields(read_model(directory / "x.gguf")))
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def assert_equal(found: Tokenizer, expected: Tokenizer) -> None:
    for text in texts():
        ids = expected.encode(text).ids
        assert found.encode(text).ids == ids, repr(text)
        assert found.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokens_are_those_of_the_models_own_file(name: str, tmp_path: Path) -> None:
    own = own_tokenizer(name)
    own.save(str(tmp_path / "tokenizer.json"))
    ids: dict[str, Any] = {"bos_token_id": own.token_to_id("<|start|>"), "eos_token_id": own.token_to_id("<|end|>")}
    assert_equal(converted(tmp_path, tokenizer_of(tmp_path, pre=name, **ids)), own)


@pytest.mark.parametrize("older", ["llama3", "llama-v3"])
def test_older_names_mean_the_words_of_llama_3(older: str, tmp_path: Path) -> None:
    own = own_tokenizer("llama-bpe")
    own.save(str(tmp_path / "tokenizer.json"))
    ids: dict[str, Any] = {"bos_token_id": own.token_to_id("<|start|>"), "eos_token_id": own.token_to_id("<|end|>")}
    assert_equal(converted(tmp_path, tokenizer_of(tmp_path, pre=older, **ids)), own)


@pytest.mark.parametrize("leads", [True, False])
def test_sentencepiece_tokens_are_those_of_the_models_own_file(leads: bool, tmp_path: Path) -> None:
    own = Tokenizer.from_file(str(save_sentencepiece(tmp_path) / "tokenizer.json"))
    if not leads:
        own.normalizer = normalizers.Replace(" ", "▁")
        own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fields: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "add_space_prefix": leads}
    assert_equal(converted(tmp_path, tokenizer_of(tmp_path, **fields)), own)


@pytest.mark.parametrize("adds_end", [False, True])
def test_the_metadata_say_which_tokens_lead_and_end(adds_end: bool, tmp_path: Path) -> None:
    save_sentencepiece(tmp_path)
    fields: dict[str, Any] = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": not adds_end,
        "add_eos_token": adds_end,
    }
    found = converted(tmp_path, tokenizer_of(tmp_path, **fields)).encode("the").ids
    assert (found[0] == 1, found[-1] == 2) == (not adds_end, adds_end)


REFUSED: dict[str, tuple[Change, str]] = {
    "another model": (lambda writer: writer.add_tokenizer_model("bert"), "tokenizer.ggml.model = 'bert'"),
    "other words": (lambda writer: writer.add_tokenizer_pre("tekken"), "tokenizer.ggml.pre = 'tekken'"),
    "types of other tokens": (lambda writer: writer.add_token_types([1]), "1 token types"),
    "a merge of no tokens": (lambda writer: writer.add_token_merges(["zz qq"]), "out of vocabulary"),
    "an id of another type": (lambda writer: writer.add_float32("tokenizer.ggml.eos_token_id", 1.5), "= 1.5 of"),
    "an id of no token": (lambda writer: writer.add_eos_token_id(100_000), "eos_token_id = 100000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_converted_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    own_tokenizer("gpt-2").save(str(tmp_path / "tokenizer.json"))
    add = tokenizer_of(tmp_path, pre="gpt-2")

    def changed(writer: gguf.GGUFWriter) -> None:
        add(writer)
        for entries in writer.kv_data:  # the package refuses a key that is there already
            for key in list(entries):
                entries.pop(key) if key in KEYS[name] else None
        change(writer)

    with pytest.raises(ModelUnsupported) as caught:
        converted(tmp_path, changed)
    assert said in caught.value.message
    assert "tokenizer.json and tokenizer_config.json beside the file" in caught.value.message


KEYS = {
    "another model": {"tokenizer.ggml.model"},
    "other words": {"tokenizer.ggml.pre"},
    "types of other tokens": {"tokenizer.ggml.token_type"},
    "a merge of no tokens": {"tokenizer.ggml.merges"},
    "an id of another type": set(),
    "an id of no token": set(),
}
