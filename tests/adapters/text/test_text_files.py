"""An adapter's text files against the base's: what is read of them, and what is refused by name."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from manylora.adapters.refusals import Refusals
from manylora.adapters.text.base_text import MAX_FILE_BYTES, BaseText
from manylora.adapters.text.labels import LABELS_FILE, read_labels
from manylora.adapters.text.text_files import merged_text, read_adapter_text
from manylora.errors import AdapterError
from manylora.models.text.adapter_text import NOTHING_SAID, AdapterText
from manylora.models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import save_byte_level, save_sentencepiece

Json = dict[str, Any]
TEXTS = [name for name in MAX_FILE_BYTES if name != LABELS_FILE]
REFUSE = Refusals("a", "local", "the-base")
END = {save_byte_level: "<|end|>", save_sentencepiece: "</s>"}
TEXT = "hello<tool>the quick<call> two words <|end|>né"


@pytest.fixture(scope="module", params=[save_byte_level, save_sentencepiece], ids=["byte-level", "sentencepiece"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.param(tmp_path_factory.mktemp("base"))
    change(folder, "tokenizer_config.json", lambda settings: settings.update(eos_token=END[request.param]))
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """The base's own files, as an adapter comes with them."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    return tmp_path


def read(base: Path, folder: Path) -> AdapterText:
    files = {name: (folder / name).read_bytes() for name in MAX_FILE_BYTES if (folder / name).exists()}
    return read_adapter_text(files, BaseText.read(base), Refusals("a", "local", "the-base"))


def change(folder: Path, name: str, make: Callable[[Json], None]) -> None:
    content = json.loads((folder / name).read_text())
    make(content)
    (folder / name).write_text(json.dumps(content))


def test_the_bases_own_files_say_nothing(base: Path, folder: Path) -> None:
    assert read(base, folder) == NOTHING_SAID
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)  # spelled as another release writes them
    assert read(base, folder) == NOTHING_SAID


def test_added_tokens_are_those_of_the_library(base: Path, folder: Path) -> None:
    own = AutoTokenizer.from_pretrained(base)
    own.add_tokens([AddedToken("<call>"), AddedToken("two words", lstrip=True), AddedToken("né", single_word=True)])
    own.add_special_tokens({"pad_token": "<tool>"})
    own.save_pretrained(folder)
    oracle, text = AutoTokenizer.from_pretrained(folder), read(base, folder)
    assert AdapterText.from_bytes(text.to_bytes()) == text
    assert text.named == {"pad_token": "<tool>"}
    ours = Tokenizer(base).with_text(text)
    for each in (TEXT, "<call>né", " <tool> two words "):
        ids = oracle.encode(each)
        assert ours.encode(each) == ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == oracle.decode(ids, skip_special_tokens=False)
        stream = ours.stream()
        assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == ours.decode(ids)
    assert Tokenizer(base).encode(TEXT) != oracle.encode(TEXT)


def test_older_files_name_tokens_too(base: Path, tmp_path: Path) -> None:
    size = Tokenizer(base).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<call>": size, "<tool>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<tool>", "<more>"]}))
    assert [(token.id, token.content) for token in read(base, tmp_path).tokens] == [
        (size, "<call>"),
        (size + 1, "<tool>"),
        (size + 2, "<more>"),
    ]


def test_tokens_before_and_after_a_text_are_the_adapters(base: Path, folder: Path) -> None:
    own = AutoTokenizer.from_pretrained(base, add_bos_token=True, add_eos_token=True)
    own.save_pretrained(folder)
    oracle, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(base).with_text(read(base, folder))
    assert ours.encode("hello") == oracle.encode("hello")
    assert ours.encode("hello", add_special_tokens=False) == oracle.encode("hello", add_special_tokens=False)
    assert [span.token_id for span in ours.spans("hello")] == oracle.encode("hello")


def test_ends_come_from_the_generation_config_else_from_the_tokenizer(base: Path, folder: Path) -> None:
    size = Tokenizer(base).vocab_size
    change(folder, "tokenizer_config.json", lambda settings: settings.update(eos_token="<call>"))
    [base_end] = BaseText.read(base).end_ids
    assert read(base, folder).end_ids == (base_end, size)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [size, 1], "stop_strings": "STOP"}))
    text = read(base, folder)
    assert (text.end_ids, text.stop_strings) == ((size, 1), ("STOP",))


def _model(content: Json) -> None:
    content["model"]["merges"] = content["model"]["merges"][:-1]


def _vocabulary(content: Json) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def _expression(content: Json) -> None:
    evil = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = evil


def _token(**fields: object) -> Callable[[Json], None]:
    def add(content: Json) -> None:
        content["added_tokens"].append({"id": 10_000, "content": "<new>", "special": False, **fields})

    return add


def _many(content: Json) -> None:
    first = max(max(content["model"]["vocab"].values()), max(each["id"] for each in content["added_tokens"])) + 1
    content["added_tokens"] += [{"id": first + number, "content": f"<{number}>"} for number in range(1_025)]


REFUSED: dict[str, tuple[Callable[[Json], None], str]] = {
    "other merges": (_model, "the model in its tokenizer.json differs"),
    "other ids": (_vocabulary, "the model in its tokenizer.json differs"),
    "a regular expression": (_expression, "the pre-tokenizer in its tokenizer.json differs"),
    "another normalizer": (lambda c: c.update(normalizer={"type": "NFKC"}), "the normalizer in its tokenizer.json"),
    "another decoder": (lambda c: c.update(decoder={"type": "WordPiece"}), "the decoder in its tokenizer.json differs"),
    "a base token less": (lambda c: c["added_tokens"].pop(0), "of the base, `"),
    "a base token's id": (_token(id=5), "has the id 5 of a token of the base"),
    "a base token's text": (_token(content="he"), "has the text of another token of the base"),
    "a gap": (_token(id=10_000), "has the id 10000 where"),
    "a long token": (_token(content="x" * 129), "has 129 bytes"),
    "an empty token": (_token(content=""), "has 0 bytes"),
    "half a character": (_token(content="\ud800"), "an added token that is none"),
    "a token without text": (_token(content=7), "an added token that is none"),
    "too many tokens": (_many, "1024"),
    "another post-processor": (
        lambda c: c.update(post_processor={"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
        "a post-processor in tokenizer.json that is not a plain template",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_is_not_the_bases_is_refused_by_name(base: Path, folder: Path, name: str) -> None:
    make, expected = REFUSED[name]
    change(folder, "tokenizer.json", make)
    with pytest.raises(AdapterError) as refused:
        read(base, folder)
    assert expected in refused.value.message


def _broken() -> Iterator[tuple[str, bytes]]:
    yield from ((name, b"{") for name in TEXTS if name.endswith(".json"))
    yield from ((name, b"[1]") for name in TEXTS if name.endswith(".json"))
    yield from ((name, b"[" * 100_000) for name in TEXTS if name.endswith(".json"))
    yield "tokenizer.json", b"[" + b"1," * 3_000_000 + b"1]"
    yield "tokenizer.json", b'{"model": 7}'
    yield "chat_template.jinja", b"\xff\xfe"
    yield "tokenizer_config.json", b'{"chat_template": 7}'
    yield "tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'
    yield "tokenizer_config.json", json.dumps({"chat_template": "x" * 600_000}).encode()
    yield "tokenizer_config.json", b'{"chat_template": "\\ud800"}'
    yield "tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}'
    yield "tokenizer_config.json", b'{"added_tokens_decoder": {"9": 3}}'
    yield "tokenizer_config.json", b'{"added_tokens_decoder": [1]}'
    yield "added_tokens.json", b'{"<a>": "7"}'
    yield "generation_config.json", b'{"eos_token_id": 100000}'
    yield "generation_config.json", b'{"eos_token_id": [true]}'
    yield "generation_config.json", b'{"eos_token_id": {"a": 1}}'
    yield "generation_config.json", b'{"stop_strings": {"a": 1}}'
    yield "generation_config.json", b'{"stop_strings": [""]}'
    yield "generation_config.json", json.dumps({"stop_strings": ["x"] * 17}).encode()


@pytest.mark.parametrize(("name", "data"), list(_broken()), ids=lambda value: str(value[:40]))
def test_a_file_that_is_damaged_or_hostile_is_refused_by_name(base: Path, folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(AdapterError) as refused:
        read(base, folder)
    assert len(refused.value.message) < 1_000


def test_a_merge_has_a_text_where_all_its_members_agree() -> None:
    one, other = AdapterText(stop_strings=("a",)), AdapterText(stop_strings=("b",))
    assert merged_text([one, one]) == one
    assert merged_text([one, other]) == NOTHING_SAID
    assert merged_text([NOTHING_SAID, one]) == NOTHING_SAID


def test_labels_and_problem_of_a_head_come_from_its_config() -> None:
    content = {"id2label": {"1": "bad", "0": "good"}, "problem_type": "multi_label_classification", "hidden_size": 8}
    files = {LABELS_FILE: json.dumps(content).encode()}
    assert read_labels(files, 2, REFUSE) == (("good", "bad"), "multi_label_classification")
    assert read_labels({}, 2, REFUSE) == ((), "")
    assert read_labels({LABELS_FILE: b"{}"}, 2, REFUSE) == ((), "")


def test_a_text_keeps_its_labels_and_one_without_them_its_bytes() -> None:
    text = AdapterText(stop_strings=("x",), labels=("good", "bad"), problem="regression")
    assert AdapterText.from_bytes(text.to_bytes()) == text
    assert b"labels" not in AdapterText(stop_strings=("x",)).to_bytes()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "config.json is not JSON"),
        (b"[1]", "config.json is not a JSON object"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b'{"num_labels": 3}', "`num_labels` in config.json is 3, its classification head has 2 labels"),
        (b'{"num_labels": "two"}', "is two, its classification head has 2 labels"),
        (b'{"id2label": {"0": "a"}}', "names 1 labels, its classification head has 2"),
        (b'{"id2label": {"0": "a", "2": "b"}}', "names 2 labels, its classification head has 2"),
        (b'{"id2label": ["a", "b"]}', "names no labels, its classification head has 2"),
        (b'{"id2label": {"0": "a", "1": 7}}', "a label that is no text of 1 to 256 bytes"),
        (b'{"id2label": {"0": "a", "1": ""}}', "a label that is no text of 1 to 256 bytes"),
        (b'{"id2label": {"0": "a", "1": "' + b"x" * 257 + b'"}}', "a label that is no text of 1 to 256 bytes"),
        (b'{"id2label": {"0": "a", "1": "\\ud800"}}', "a label that is no text of 1 to 256 bytes"),
        (b'{"problem_type": "ranking"}', "`problem_type` = "),
        (b'{"problem_type": ["a"]}', "`problem_type` = "),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(content: bytes, expected: str) -> None:
    with pytest.raises(AdapterError) as refused:
        read_labels({LABELS_FILE: content}, 2, REFUSE)
    assert expected in refused.value.message
