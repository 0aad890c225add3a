"""The edge's record of deliveries on disk: what it received, whatever was torn, failed or deleted."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.errors import UsageUnrecorded
from manylora.ids import PROBE_FLOW, RequestId
from manylora.server.engine_client.messages import StepFrame
from manylora.server.metering import journal as journal_module
from manylora.server.metering.append_log import FramedFile, read_entries
from manylora.server.metering.counted import Counted
from manylora.server.metering.journal import (
    KEPT_PARTS,
    DeliveryJournal,
    journals_in,
    links_in,
    part_path,
    parts_of,
    read_journal,
    remove_journal,
)
from tests.server.metering.frames import end, frame, index_of, request

EDGE = "00" * 8
A = RequestId("a")


def begun(folder: Path, *names: str) -> DeliveryJournal:
    journal = DeliveryJournal(folder, EDGE)
    for name in names:
        journal.begin(index_of(name), request(name))
    return journal


def test_what_was_written_was_delivered(tmp_path: Path) -> None:
    journal = begun(tmp_path, "a")
    journal.begin(index_of("b"), request("b", 5))
    journal.begin(index_of("p"), request("probe", flow=PROBE_FLOW))
    journal.write(frame("a", "a", "b", "p"))
    journal.write(frame("b", ended=[end("a", 2), end("probe", 1)]))
    assert read_journal(tmp_path, EDGE) == {
        "a": Counted(3, cached_tokens=1, committed=2, delivered=2, has_ended=True, reason="length"),
        "b": Counted(5, committed=2, delivered=2),
    }
    assert journals_in(tmp_path) == [EDGE]
    remove_journal(tmp_path, EDGE)
    assert list(tmp_path.iterdir()) == []
    assert read_journal(tmp_path, EDGE) == {}


def test_what_never_reached_the_engine_is_not_written(tmp_path: Path) -> None:
    journal = begun(tmp_path, "a", "b")
    journal.withdraw(index_of("b"))
    journal.write(frame("a"))
    assert set(read_journal(tmp_path, EDGE)) == {"a"}


def test_every_torn_end_leaves_what_was_whole(tmp_path: Path) -> None:
    journal = begun(tmp_path, "a")
    for _ in range(3):
        journal.write(frame("a"))
    path = parts_of(tmp_path, EDGE)[0]
    whole = path.read_bytes()
    ends = [0, *(offset for offset, _ in read_entries(path))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = read_journal(tmp_path, EDGE)
        assert (found[A].delivered if found else 0) == sum(end <= cut for end in ends) - 1
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = read_journal(tmp_path, EDGE)
        assert (found[A].delivered if found else 0) == sum(end <= at for end in ends) - 1


def test_zeros_that_the_end_of_the_machine_leaves_are_no_entries(tmp_path: Path) -> None:
    begun(tmp_path, "a").write(frame("a"))
    with parts_of(tmp_path, EDGE)[0].open("ab") as stream:
        stream.write(bytes(64))
    assert read_journal(tmp_path, EDGE) == {"a": Counted(3, committed=1, delivered=1)}


STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans(), st.booleans()),
    max_size=60,
)
"""(request, tokens, does it end, is its usage settled at once)"""


@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS, st.booleans())
def test_parts_that_are_deleted_change_no_count_of_what_is_not_settled(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool, bool]], keeps_parts: bool
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "PART_BYTES", 100)
        journal = DeliveryJournal(folder, EDGE, keeps_parts=keeps_parts)
        expected: dict[str, Counted] = {}
        settled: set[str] = set()
        for name, count, is_end, is_settled in steps:
            known = expected.get(name)
            if known is not None and known.has_ended:
                continue
            if known is None:
                known = expected[name] = Counted(3)
                journal.begin(index_of(name), request(name))
            known.committed += count
            known.delivered += count
            if is_end:
                known.has_ended, known.cached_tokens, known.reason = True, 1, "length"
            journal.write(frame(*[name] * count, ended=[end(name, known.committed)] if is_end else []))
            if is_end and is_settled:
                journal.settle([RequestId(name)])
                settled.add(name)
        assert len(parts_of(folder, EDGE)) <= KEPT_PARTS or keeps_parts
        # A request of which nothing was received is written with the next frame only.
        found = {name: each for name, each in read_journal(folder, EDGE).items() if each.delivered or each.has_ended}
        told = {name: each for name, each in expected.items() if each.delivered or each.has_ended}
        if not keeps_parts:  # a part that is deleted takes settled requests along
            found = {name: each for name, each in found.items() if name not in settled}
            told = {name: each for name, each in told.items() if name not in settled}
        assert found == told


def test_only_the_last_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 200)
    journal = begun(tmp_path, "a")
    for _ in range(199):
        journal.write(frame("a", "a"))
    assert len(parts_of(tmp_path, EDGE)) == KEPT_PARTS
    assert read_journal(tmp_path, EDGE) == {"a": Counted(3, committed=398, delivered=398)}


def test_a_write_that_is_cut_short_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FramedFile(tmp_path / "file")
    file.append(b"one")
    monkeypatch.setattr("os.write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="bytes were written"):
        file.append(b"two")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
def test_a_frame_that_cannot_be_written_ends_all_and_the_next_request_tries_again(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = begun(tmp_path, "a")
    journal.write(frame("a"))
    with monkeypatch.context() as patch:

        def fail(descriptor: int, data: bytes) -> int:
            raise OSError(number, os.strerror(number))

        patch.setattr("os.write", fail)
        with pytest.raises(UsageUnrecorded, match=os.strerror(number)):
            journal.write(frame("a"))
        for _ in range(2):
            with pytest.raises(UsageUnrecorded, match=os.strerror(number)):
                journal.begin(index_of("b"), request("b"))
        assert caplog.text.count("usage.unrecorded ") == 1
    journal.begin(index_of("c"), request("c"))
    assert "usage.recorded_again" in caplog.text
    journal.write(frame("a", "c"))  # `a` is forgotten
    assert read_journal(tmp_path, EDGE) == {
        "a": Counted(3, committed=1, delivered=1),
        "c": Counted(3, committed=1, delivered=1),
    }


def test_cached_tokens_are_known_from_the_first_token_and_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 1)
    journal = begun(tmp_path, "a", "b")
    journal.write(frame("a", cached={"a": 2}))
    for _ in range(4):  # each begins a part, and old ones are deleted
        journal.write(frame("a", "b"))
    found = read_journal(tmp_path, EDGE)
    assert (found[A].cached_tokens, found[RequestId("b")].cached_tokens) == (2, 0)
    assert found[A].delivered == 5


def test_the_end_of_a_request_whose_caller_had_left_has_the_positions_computed(tmp_path: Path) -> None:
    journal = DeliveryJournal(tmp_path, EDGE)
    journal.begin(index_of("a"), request("a", 9))
    left = end("a", 0, prompt_tokens=9, computed_tokens=6, reason=FinishReason.DISCONNECT)
    journal.write(frame(ended=[left]))
    (found,) = read_journal(tmp_path, EDGE).values()
    assert found == Counted(
        9, cached_tokens=1, computed_tokens=6, has_ended=True, reason="disconnect", cut="disconnect"
    )


def of_link(link: str, number: int, *names: str) -> StepFrame:
    return msgspec.structs.replace(frame(*names), link=link, number=number)


def test_a_link_with_counts_replaces_the_links_before_it_to_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 1)
    journal = begun(tmp_path, "a")
    for link in range(1, 40):
        journal.note_link("host-edge")
        journal.write(of_link(f"host-edge-{link}", 1, "a"))
        journal.write(of_link(f"host-edge-{link}", 2, "a"))
    journal.note_link("other-edge")
    assert journal.recorded == {"host-edge-39": 2, "other-edge": 0}
    assert len(links_in(tmp_path, EDGE)) <= 4  # in the parts that are kept
    journal.write(msgspec.structs.replace(frame(ended=[end("a", 78)]), link="host-edge-40"))
    assert journal.recorded.keys() == {"host-edge-39", "other-edge", "host-edge-40"}, "its host has written nothing yet"


def test_a_journal_keeps_the_latest_links_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 1)
    monkeypatch.setattr(journal_module, "MOST_LINKS", 2)
    journal = DeliveryJournal(tmp_path, EDGE, recorded={"lost-old-1": 7, "lost-old-2": 8, "lost-old-3": 9})
    assert journal.recorded == {"lost-old-2": 8, "lost-old-3": 9}
    for host in "abcabd":
        journal.note_link(f"{host}-edge")
    assert list(journal.recorded) == ["b-edge", "d-edge"]
    last = parts_of(tmp_path, EDGE)[-1]
    assert links_in(tmp_path, EDGE).keys() >= {"b-edge", "d-edge"}
    assert len(list(read_entries(last))) == 2


def test_an_entry_of_format_4_has_no_links(tmp_path: Path) -> None:
    file = FramedFile(part_path(tmp_path, EDGE, 0))
    file.append(msgspec.msgpack.encode([[(0, "a", 3, 0)], [0, 0], [(0, 2)], [(0, 3, 2, 2, 3, "length")]]))
    file.close()
    counted = Counted(3, cached_tokens=2, committed=2, delivered=2, has_ended=True, reason="length")
    assert (read_journal(tmp_path, EDGE), links_in(tmp_path, EDGE)) == ({"a": counted}, {})
