"""The log of a replica: a bounded size, its last line, and that of the start before."""

from pathlib import Path

import pytest

from manylora.wiring.placer import replica_log
from manylora.wiring.placer.replica_log import READ_BYTES, cut_log, last_line, open_log


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    assert last_line(tmp_path) == ""
    (tmp_path / "log").write_bytes(b"x" * 3 * READ_BYTES + b"\nthe last \xff words\n\n  \n")
    assert last_line(tmp_path) == "the last \ufffd words"
    (tmp_path / "log").write_bytes(b"x" * 3 * READ_BYTES)
    assert len(last_line(tmp_path)) == READ_BYTES


def test_a_log_that_grows_becomes_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_log, "LOG_BYTES", 100)
    cut_log(tmp_path)
    with open_log(tmp_path) as output:
        output.write(b"short\n")
        output.flush()
        cut_log(tmp_path)
        assert not (tmp_path / "log.1").exists()
        output.write(b"y" * 100 + b"\n")
        output.flush()
        cut_log(tmp_path)
        output.write(b"after\n")  # as a process that knows nothing of the cut
    assert (tmp_path / "log").read_bytes() == b"after\n"
    assert (tmp_path / "log.1").read_bytes() == b"short\n" + b"y" * 100 + b"\n"


def test_a_start_keeps_the_log_of_the_one_before(tmp_path: Path) -> None:
    for words in (b"first\n", b"second\n", b"third\n"):
        with open_log(tmp_path) as output:
            output.write(words)
    assert (tmp_path / "log").read_bytes() == b"third\n"
    assert (tmp_path / "log.1").read_bytes() == b"second\n"
