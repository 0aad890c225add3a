"""Text to ids and back: against transformers, and the incremental stream against the whole."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from manylora.errors import ModelNotFound, ModelUnsupported, TemplateFailed
from manylora.models.text.adapter_text import AdapterText, AddedToken
from manylora.models.text.tokenizer import Tokenizer
from tests.conftest import long
from tests.models.tiny_tokenizers import save_byte_level, save_sentencepiece

TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="the hello\u2581 \n<s>/|end👍🏽你é\u200d１2"),
    st.sampled_from(
        ["", " ", "   two  spaces ", "👍🏽👨‍👩‍👧", "\u0000\ufffd", "<s> hello </s>", "a b", "½ ﷽ e\u0301", "\r\n\t"]
    ),
)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = {"byte_level": save_byte_level, "sentencepiece": save_sentencepiece}[request.param]
    return save(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:  # transformers is not type-checked here
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), clean_up_tokenization_spaces=False)


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
    stream = tokenizer.stream(skip_special_tokens=skip_special_tokens, continues=continues)
    return "".join(stream.push(token_id) for token_id in ids) + stream.finish()


@given(text=TEXTS, special=st.booleans())
def test_ids_equal_those_of_transformers(tokenizer: Tokenizer, oracle: Any, text: str, special: bool) -> None:
    expected = oracle(text, add_special_tokens=special)["input_ids"]
    assert tokenizer.encode(text, add_special_tokens=special) == expected
    assert [span.token_id for span in tokenizer.spans(text, add_special_tokens=special)] == expected


@given(text=TEXTS, skip=st.booleans())
def test_a_stream_of_a_texts_tokens_equals_decoding_them_all(tokenizer: Tokenizer, text: str, skip: bool) -> None:
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(data=st.data(), skip=st.booleans())
def test_a_byte_level_stream_of_any_ids_equals_decoding_them_all(
    tokenizer: Tokenizer, oracle: Any, data: st.DataObject, skip: bool
) -> None:
    if tokenizer.token_id("<0x00>") is not None:
        return  # a byte token's text depends on the whole run of them there, which no stream can see
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5)))
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert streamed(tokenizer, ids, skip_special_tokens=skip) == whole
    known = [token_id for token_id in ids if token_id < tokenizer.vocab_size]
    assert whole == oracle.decode(known, skip_special_tokens=skip)


@given(data=st.data(), skip=st.booleans())
def test_a_stream_of_words_and_of_characters_in_bytes_equals_decoding_them_all(
    tokenizer: Tokenizer, oracle: Any, data: st.DataObject, skip: bool
) -> None:
    """Byte tokens that make whole characters, in any order with words and special tokens."""
    first = tokenizer.token_id("<0x00>")
    if first is None:
        return
    bytes_of = st.text(max_size=3).map(lambda text: [first + byte for byte in text.encode()])
    others = st.integers(0, tokenizer.vocab_size - 1).filter(lambda token: not first <= token < first + 256)
    ids = [token for run in data.draw(st.lists(bytes_of | others.map(lambda token: [token]))) for token in run]
    whole = oracle.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == whole
    assert streamed(tokenizer, ids, skip_special_tokens=skip) == whole


@given(text=TEXTS)
def test_no_piece_of_a_stream_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    stream = tokenizer.stream(skip_special_tokens=False)
    assert all("\ufffd" not in stream.push(token_id) for token_id in tokenizer.encode(text))


def test_an_emoji_of_several_tokens_comes_out_once(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode("🦜", add_special_tokens=False)]
    assert len(pieces) > 1
    assert [piece for piece in pieces if piece] == (["🦜"] if pieces[0] == "" else [" ", "🦜"])


def test_a_stream_that_ends_inside_a_character_says_so(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x🦜", add_special_tokens=False)[:-1]
    assert streamed(tokenizer, ids).lstrip() == "x\ufffd"


def test_after_a_prompt_the_first_words_space_is_kept(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" the" if tokenizer.token_id("Ġthe") else "the", add_special_tokens=False)
    assert streamed(tokenizer, ids, continues=True) == " the"


def test_skipped_tokens_leave_no_trace_between_words(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello the", add_special_tokens=False)
    end = tokenizer.eos_ids[0]
    with_ends = [token_id for pair in zip(ids, [end] * len(ids), strict=True) for token_id in pair]
    assert streamed(tokenizer, with_ends) == "hello the"


def test_offsets_point_into_the_text(tokenizer: Tokenizer) -> None:
    text = "hello the 👍🏽 dog"
    spans = tokenizer.spans(text, add_special_tokens=False)
    assert spans[0].start == 0
    assert spans[-1].stop == len(text)
    assert all(tokenizer.piece(span.token_id) == span.piece for span in spans)


def test_the_bytes_of_the_tokens_make_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("café 🦜", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == "café 🦜"
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.piece(10**6) is None


def test_end_and_special_tokens_are_known(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token_id) in ("<|end|>", "</s>") for token_id in tokenizer.eos_ids] == [True]
    assert set(tokenizer.eos_ids) < tokenizer.special_ids


def test_one_tokenizer_serves_many_threads(tokenizer: Tokenizer) -> None:
    texts = [f"hello {index} the dog 👍🏽" for index in range(200)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]


def test_a_missing_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_decoder_of_another_family_is_refused(directory: Path, tmp_path: Path) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelUnsupported, match="decoder WordPiece"):
        Tokenizer(tmp_path)


def test_further_variables_reach_a_template(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((directory / "tokenizer.json").read_text())
    (tmp_path / "chat_template.jinja").write_text("{{ mood }}")
    assert Tokenizer(tmp_path).apply_chat_template([], variables={"mood": "calm"}) == "calm"


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ 7 * 7 }} <|im_end|>"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n"}, {"role": "user", "content": " c "}],
]


@pytest.mark.base
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompting", [True, False])
def test_the_default_bases_prompts_equal_those_of_transformers(
    base_dir: Path, messages: list[dict[str, str]], prompting: bool
) -> None:
    oracle = AutoTokenizer.from_pretrained(base_dir)
    ours = Tokenizer(base_dir)
    prompt = ours.apply_chat_template(messages, add_generation_prompt=prompting)
    assert prompt == oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)
    assert ours.encode(prompt, add_special_tokens=False) == oracle(prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.base
@pytest.mark.parametrize("examples", [60, *long(200)])
def test_the_default_bases_ids_equal_those_of_transformers(base_dir: Path, examples: int) -> None:
    oracle, ours = AutoTokenizer.from_pretrained(base_dir), Tokenizer(base_dir)

    @given(text=TEXTS)
    @settings(max_examples=examples)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == oracle(text)["input_ids"]
        assert streamed(ours, ids) == ours.decode(ids)

    check()
    assert ours.eos_ids == (2,)


CONTINUED = [
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}",
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% if not loop.last %}</s>{% endif %}{% endfor %}",
]


@pytest.mark.parametrize("template", CONTINUED)
@pytest.mark.parametrize("last", ["Well", "Well, ", "  two  words", "a\n\n", "CONTINUE_FINAL_MESSAGE", "Hi"])
def test_a_continued_message_ends_the_prompt_as_in_transformers(
    oracle: Any, directory: Path, tmp_path: Path, template: str, last: str
) -> None:
    (tmp_path / "tokenizer.json").write_text((directory / "tokenizer.json").read_text())
    (tmp_path / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": last}]
    ours = Tokenizer(tmp_path).apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert ours == oracle.apply_chat_template(
        messages, chat_template=template, tokenize=False, continue_final_message=True
    )


def test_a_template_that_changes_the_last_message_cannot_continue_it(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((directory / "tokenizer.json").read_text())
    for template in ("{{ messages[0].content }}", "{% for m in messages %}{{ m.content | upper }}{% endfor %}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(TemplateFailed, match="changes the last message"):
            Tokenizer(tmp_path).apply_chat_template(
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}],
                add_generation_prompt=False,
                continue_final_message=True,
            )


def test_added_tokens_are_read_alike_with_and_without_a_library(directory: Path) -> None:
    base = Tokenizer(directory)
    first = base.vocab_size
    tokens = (
        AddedToken(id=first, content="<tool>", special=True),
        AddedToken(id=first + 1, content="two words é"),
        AddedToken(id=first + 2, content="▁Ġ"),
    )
    whole, reading = base.with_text(AdapterText(tokens=tokens)), base.with_added(tokens)
    ids = [5, first, 6, first + 1, first + 2, 7]
    assert whole.special_ids == reading.special_ids
    for token_id in ids:
        assert whole.token_bytes(token_id) == reading.token_bytes(token_id)
    streams = [tokenizer.stream(continues=True) for tokenizer in (whole, reading)]
    assert len({"".join([*map(stream.push, ids), stream.finish()]) for stream in streams}) == 1
