"""The pipeline from tokens to pieces of text: cut at stop strings, with their tokens, and without more memory."""

import gc
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.outputs import SequenceOutput
from manylora.server.generation.text import Piece, ReplyForm, TextToken, TokenReport
from manylora.usage import Counts
from tests.server.tiny_tokenizer import BOS, EOS, UNK, save_tokenizer

PLAIN = ReplyForm(cuts_stops=True, report=TokenReport.NONE, keeps_text=False, keeps_tokens=False)
LISTED = ReplyForm(cuts_stops=True, report=TokenReport.IN_TEXT, keeps_text=True, keeps_tokens=True)
UNCUT = ReplyForm(cuts_stops=False, report=TokenReport.EVERY, keeps_text=True, keeps_tokens=True)
FORMS = (PLAIN, LISTED, UNCUT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Tokenizer(folder, model_id="tiny")


def output(
    tokenizer: Tokenizer, form: ReplyForm, stops: Sequence[str] = (), shown: frozenset[int] = frozenset()
) -> SequenceOutput:
    request = Request(
        id=RequestId("r"),
        flow=Flow("acme"),
        salt="",
        tokens=(1,),
        adapter=None,
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=10_000, stop_strings=tuple(stops)),
    )
    stream = SequenceStream(request, lambda *_: None)
    return SequenceOutput(0, stream, tokenizer, form, keeps_stop=False, shown=shown)


def pieces(output: SequenceOutput, text: Sequence[int], reason: FinishReason = FinishReason.LENGTH) -> Iterator[Piece]:
    """Give the pipeline a token for each byte, each as soon as it is there, and the end with the last one."""
    stream = output.stream
    for number, byte in enumerate(text):
        stream.put(TokenEvent(RequestId("r"), byte, logprob=-1.0))
        if number == len(text) - 1:
            counts = Counts(prompt_tokens=1, cached_tokens=0, completion_tokens=len(text))
            stream.put(Finished(request_id=RequestId("r"), reason=reason, counts=counts))
        yield output.take(stream.take())


def test_a_special_token_that_begins_calls_is_shown_alone(tokenizer: Tokenizer) -> None:
    tokens = [BOS, 97, UNK, 98]
    for shown, expected in ((frozenset[int](), "ab"), (frozenset({UNK}), "a<unk>b")):
        found = output(tokenizer, LISTED, shown=shown)
        assert "".join(piece.text for piece in pieces(found, tokens)) == expected
        assert [token.is_hidden for token in found.tokens] == [False] * len(found.tokens)


TEXTS = st.text(alphabet="abé–", min_size=1, max_size=40)


@given(text=TEXTS, stops=st.lists(st.text(alphabet="abé–", min_size=1, max_size=4), max_size=3))
def test_the_pieces_make_the_text_before_the_stop_string_that_ends_first(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    end, length = min(ends, default=(len(text), 0))
    for form in (PLAIN, LISTED):
        found = output(tokenizer, form, stops)
        made = list(pieces(found, text.encode()))
        assert "".join(piece.text for piece in made) == text[: end + length]
        assert made[-1].is_cut == bool(ends)
    assert found.text == text[: end + length]
    assert "".join(piece.text for piece in pieces(output(tokenizer, UNCUT, stops), text.encode())) == text


@given(text=TEXTS)
def test_each_token_is_listed_once_where_its_text_begins(tokenizer: Tokenizer, text: str) -> None:
    found = output(tokenizer, LISTED, ["aa"])
    listed: list[TextToken] = []
    sent = 0
    for piece in pieces(found, text.encode()):
        sent += len(piece.text)
        listed += piece.tokens
        if piece.end is None or piece.is_cut:
            assert all(token.offset < sent for token in piece.tokens)
    cut = text.find("aa")
    whole = text if cut < 0 else text[:cut]
    assert [token.id for token in listed] == list(whole.encode())
    assert found.tokens == listed


@pytest.mark.parametrize("form", FORMS)
def test_the_end_comes_with_the_last_token(tokenizer: Tokenizer, form: ReplyForm) -> None:
    *others, last = pieces(output(tokenizer, form), b"abc")
    assert [piece.end for piece in others] == [None, None]
    assert last.end is not None
    assert last.text == "c"


def test_the_token_that_ends_a_text_is_no_part_of_it(tokenizer: Tokenizer) -> None:
    found = output(tokenizer, UNCUT)
    stream = found.stream
    stream.put(TokenEvent(RequestId("r"), EOS, logprob=-1.0))
    counts = Counts(prompt_tokens=1, cached_tokens=0, completion_tokens=1)
    stream.put(Finished(request_id=RequestId("r"), reason=FinishReason.END_OF_SEQUENCE, counts=counts))
    piece = found.take(stream.take())
    assert piece.text == ""
    assert [(token.id, token.is_special, token.is_hidden) for token in piece.tokens] == [(EOS, True, True)]


@pytest.mark.parametrize("stops", [(), ("never",)])
def test_a_plain_stream_keeps_nothing_that_grows_with_it(tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
    def size_after(length: int, form: ReplyForm) -> int:
        found = output(tokenizer, form, stops)
        for piece in pieces(found, b"a" * length):
            assert form is LISTED or not piece.tokens
        return held_by(found)

    assert size_after(2_000, PLAIN) == size_after(200, PLAIN)
    assert size_after(2_000, LISTED) > size_after(200, LISTED) + 1_800, "else this test would see nothing"


def held_by(found: SequenceOutput) -> int:
    """The number of characters and objects, numbers aside, that an output alone holds on to."""
    shared = {id(found._tokenizer), id(found.stream.request), id(type(found))}
    seen, left, total = set(shared), [found], 0
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | int | float) or callable(each):
            continue
        seen.add(id(each))
        total += 1 + (len(each) if isinstance(each, str | bytes | list) else 0)
        left += gc.get_referents(each)
    return total
