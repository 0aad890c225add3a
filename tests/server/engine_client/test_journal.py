"""The engine's own counts on disk: what was committed, what was received, whatever was torn."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import PROBE_FLOW, Flow, RequestId
from manylora.server.engine_client import journal
from manylora.server.engine_client.append_log import FramedFile, read_entries
from manylora.server.engine_client.journal import (
    Counted,
    Journal,
    SeenFrames,
    lives_in,
    part_path,
    parts_of,
    read_journal,
    remove_journal,
)
from manylora.usage import Counts

LIFE = "00" * 8
A = RequestId("a")


def request(name: str, prompt_tokens: int = 3, flow: Flow = Flow("acme")) -> Request:  # noqa: B008  a string
    return Request(
        id=RequestId(name),
        flow=flow,
        salt="",
        tokens=tuple(range(prompt_tokens)),
        adapter=None,
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=9),
    )


def tokens(*names: str) -> StepEvents:
    return StepEvents(tokens=tuple(TokenEvent(RequestId(name), 1) for name in names))


def end(name: str, completion_tokens: int) -> Finished:
    counts = Counts(prompt_tokens=3, cached_tokens=1, completion_tokens=completion_tokens)
    return Finished(request_id=RequestId(name), reason=FinishReason.LENGTH, counts=counts)


def test_what_was_committed_and_what_was_received_are_told_apart(tmp_path: Path) -> None:
    written, seen = Journal(tmp_path, LIFE), SeenFrames(tmp_path, LIFE)
    written.submit(request("a"))
    written.submit(request("b", 5))
    written.submit(request("probe", flow=PROBE_FLOW))
    written.write(1, tokens("a", "a", "b", "probe"))
    seen.note(1)
    written.write(2, StepEvents(tokens=tokens("b").tokens, finished=(end("a", 2),)))
    assert read_journal(tmp_path, LIFE) == {
        "a": Counted(3, cached_tokens=1, committed=2, delivered=2, has_ended=True),
        "b": Counted(5, committed=2, delivered=1),
    }
    assert lives_in(tmp_path) == [LIFE]
    remove_journal(tmp_path, LIFE)
    assert list(tmp_path.iterdir()) == []
    assert read_journal(tmp_path, LIFE) == {}


def test_every_torn_end_leaves_what_was_whole(tmp_path: Path) -> None:
    written = Journal(tmp_path, LIFE)
    written.submit(request("a"))
    for number in range(1, 4):
        written.write(number, tokens("a"))
    path = parts_of(tmp_path, LIFE)[0]
    whole = path.read_bytes()
    ends = [0, *(offset for offset, _ in read_entries(path))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = read_journal(tmp_path, LIFE)
        num_whole = sum(end <= cut for end in ends) - 1
        assert (found[A].committed if found else 0) == num_whole
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = read_journal(tmp_path, LIFE)
        assert (found[A].committed if found else 0) == sum(end <= at for end in ends) - 1


def test_zeros_that_the_end_of_the_machine_leaves_are_no_entries(tmp_path: Path) -> None:
    written = Journal(tmp_path, LIFE)
    written.submit(request("a"))
    written.write(1, tokens("a"))
    with parts_of(tmp_path, LIFE)[0].open("ab") as stream:
        stream.write(bytes(64))
    assert read_journal(tmp_path, LIFE) == {"a": Counted(3, committed=1)}


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans()), max_size=60)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(0, 70))
def test_parts_that_have_gone_change_no_count(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]], num_received: int
) -> None:
    """Whatever the parts are, a reader finds what the engine counted of all that has not long ended."""
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "PART_BYTES", 120)
        written, seen = Journal(folder, LIFE, keeps_parts=True), SeenFrames(folder, LIFE)
        expected: dict[str, Counted] = {}
        for number, (name, count, is_end) in enumerate(steps, 1):
            known = expected.get(name)
            if known is not None and known.has_ended:
                continue
            if known is None:
                known = expected[name] = Counted(3)
                written.submit(request(name))
            known.committed += count
            known.delivered += count if number <= num_received else 0
            known.has_ended = is_end
            if is_end:
                known.cached_tokens = 1
            ended = (end(name, known.committed),) if is_end else ()
            written.write(number, StepEvents(tokens=tokens(*[name] * count).tokens, finished=ended))
        seen.note(num_received)
        found = read_journal(folder, LIFE)
        # A request of which nothing was committed has not been written down, unless a part began meanwhile.
        told = {name: counted for name, counted in expected.items() if counted.committed or counted.has_ended}
        assert {name: counted for name, counted in found.items() if counted.committed or counted.has_ended} == told


def test_only_the_last_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PART_BYTES", 200)
    written, seen = Journal(tmp_path, LIFE), SeenFrames(tmp_path, LIFE)
    written.submit(request("a"))
    for number in range(1, 200):
        written.write(number, tokens("a", "a"))
        seen.note(number)
    assert len(parts_of(tmp_path, LIFE)) == journal.KEPT_PARTS
    assert read_journal(tmp_path, LIFE) == {"a": Counted(3, committed=398, delivered=398)}


def test_a_write_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FramedFile(tmp_path / "file")
    file.append(b"one")
    monkeypatch.setattr("os.write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="bytes were written"):
        file.append(b"two")


def test_what_was_cached_is_known_from_the_first_token_and_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.server.engine_client.journal.PART_BYTES", 1)
    written = Journal(tmp_path, LIFE)
    written.submit(request("a"))
    written.submit(request("b"))
    written.write(1, StepEvents(tokens=(TokenEvent(A, 1, cached_tokens=2),)))
    for number in range(2, 6):  # each begins a part, and old ones go
        written.write(number, tokens("a", "b"))
    found = read_journal(tmp_path, LIFE)
    assert (found[A].cached_tokens, found[RequestId("b")].cached_tokens) == (2, 0)
    assert found[A].committed == 5


def test_who_had_left_is_told_with_the_positions_computed(tmp_path: Path) -> None:
    written = Journal(tmp_path, LIFE)
    written.submit(request("a", 9))
    counts = Counts(prompt_tokens=9, cached_tokens=1, completion_tokens=0, computed_tokens=6)
    written.write(1, StepEvents(finished=(Finished(request_id=A, reason=FinishReason.DISCONNECT, counts=counts),)))
    (found,) = read_journal(tmp_path, LIFE).values()
    assert (found.cut, found.counts) == ("disconnect", counts)


def test_an_entry_of_the_version_before_is_read(tmp_path: Path) -> None:
    file = FramedFile(part_path(tmp_path, LIFE, 0))
    file.append(msgspec.msgpack.encode((1, [(0, "a", 3, 0)], [0, 0], [(0, 3, 1, 2)])))
    file.close()
    assert read_journal(tmp_path, LIFE) == {A: Counted(3, cached_tokens=1, committed=2, has_ended=True)}
