"""Journals of engines before format 3 are still read: counted by the engine, delivered up to the last frame seen."""

from pathlib import Path

from manylora.ids import RequestId
from manylora.server.metering.append_log import read_entries
from manylora.server.metering.counted import Counted
from manylora.server.metering.engine_journal import engine_lives_in, read_engine_journal, remove_engine_journal
from tests.server.metering.old_journal import write_engine_journal

LIFE = "00" * 8
A, B = RequestId("a"), RequestId("b")


def test_frames_after_the_last_seen_are_committed_and_not_delivered(tmp_path: Path) -> None:
    entries = [
        (1, [(0, "a", 3, 0), (1, "b", 5, 0)], [0, 0, 1], [], [], [(1, 2)]),
        (2, [], [1], [(0, 3, 1, 2)]),
        (3, [], [], [(1, 5, 2, 2)], [(1, 5, "disconnect")]),
    ]
    write_engine_journal(tmp_path, LIFE, entries, seen=1)
    assert read_engine_journal(tmp_path, LIFE) == {
        A: Counted(3, cached_tokens=1, committed=2, delivered=2, has_ended=True),
        B: Counted(5, cached_tokens=2, computed_tokens=5, committed=2, delivered=1, has_ended=True, cut="disconnect"),
    }
    assert engine_lives_in(tmp_path) == [LIFE]
    remove_engine_journal(tmp_path, LIFE)
    assert list(tmp_path.iterdir()) == []
    assert read_engine_journal(tmp_path, LIFE) == {}


def test_a_journal_without_a_last_frame_seen_was_delivered_to_no_one(tmp_path: Path) -> None:
    path = write_engine_journal(tmp_path, LIFE, [(1, [(0, "a", 3, 0)], [0], [])], seen=9)
    path.with_name(f"engine-{LIFE}.seen").unlink()
    assert read_engine_journal(tmp_path, LIFE) == {A: Counted(3, committed=1)}


def test_a_part_repeats_what_an_earlier_one_has_and_stands_for_one_that_is_gone(tmp_path: Path) -> None:
    first = write_engine_journal(tmp_path, LIFE, [(1, [(0, "a", 3, 0)], [0, 0], [])], seen=2)
    write_engine_journal(tmp_path, LIFE, [(1, [(0, "a", 3, 2)], [], []), (2, [], [0], [])], seen=2, part=1)
    expected = {A: Counted(3, committed=3, delivered=3)}
    assert read_engine_journal(tmp_path, LIFE) == expected
    first.unlink()
    assert read_engine_journal(tmp_path, LIFE) == expected


def test_every_torn_end_leaves_what_was_whole(tmp_path: Path) -> None:
    entries: list[tuple[object, ...]] = [(1, [(0, "a", 3, 0)], [0], []), (2, [], [0], []), (3, [], [0], [])]
    path = write_engine_journal(tmp_path, LIFE, entries, seen=9)
    whole = path.read_bytes()
    ends = [0, *(offset for offset, _ in read_entries(path))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        found = read_engine_journal(tmp_path, LIFE)
        assert (found[A].committed if found else 0) == sum(end <= cut for end in ends) - 1
