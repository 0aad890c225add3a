"""Lines of inputs and results on the disk."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from manylora.server.batches.lines import (
    MAX_ERRORS,
    LineResult,
    check_input,
    mark_of,
    pending_lines,
    read_results,
    result_line,
)
from tests.server.batches.batch_house import COMPLETIONS, jsonl, line


def test_the_errors_of_an_input_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x\n" * (3 * MAX_ERRORS))
    found = check_input(path, COMPLETIONS, max_lines=10_000, max_line_bytes=1_000)
    assert [error.line for error in found.errors] == list(range(1, MAX_ERRORS + 1))


def test_lines_with_results_and_blank_ones_are_not_pending(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl([line("a")]) + b"\r\n\n" + jsonl([line("b"), line("c")]).replace(b"\n", b"\r\n").rstrip())
    done = {mark_of("b")}
    pending = pending_lines(path, COMPLETIONS, done, 1_000)
    assert next(pending).custom_id == "a"
    done.add(mark_of("c"))  # another line of the same id has ended meanwhile
    assert list(pending) == []


async def pieces_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_results_are_read_whatever_the_pieces(size: int) -> None:
    whole = b"".join(result_line(LineResult(id=name, custom_id=name)) for name in "ab")
    found = asyncio.run(read_results(pieces_of(whole, size)))
    assert (found.size, found.marks) == (len(whole), {mark_of("a"), mark_of("b")})
    assert asyncio.run(read_results(pieces_of(b"", size))).size == 0
