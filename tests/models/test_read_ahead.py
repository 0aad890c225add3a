"""A matrix read ahead gives the slices of the matrix, whatever the order, and raises an error at its own slice."""

import pytest

from manylora.kernels.weight_rows import row_ranges
from manylora.models.read_ahead import ReadAhead, Readers


class Rows:
    """Row numbers; those from `broken` on cannot be read."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.shape = (count, 4096)
        self.broken = broken
        self.reads: list[slice] = []

    def __getitem__(self, rows: slice) -> list[int]:
        self.reads.append(rows)
        if self.broken is not None and rows.stop > self.broken:
            raise OSError(f"row {self.broken}")
        return list(range(rows.start, rows.stop))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 64, 128, 300, 1000])
def test_slices_in_order_are_each_read_once(count: int, threads: int) -> None:
    readers, rows, taken = Readers(threads), Rows(count), list[int]()
    ahead = ReadAhead(rows, readers, taken.append)
    found = [row for one in row_ranges(rows.shape) for row in ahead[one]]
    readers.close()
    assert found == list(range(count))
    assert sum(taken) == count
    assert sorted(rows.reads, key=lambda one: one.start) == list(row_ranges(rows.shape))


def test_no_more_slices_are_read_ahead_than_there_are_threads() -> None:
    readers, rows = Readers(2), Rows(1000)
    ahead = ReadAhead(rows, readers, lambda count: None)
    assert ahead[0:10] == list(range(10))
    readers.close()
    assert max(one.stop for one in rows.reads) <= 30


def test_slices_in_another_order_are_read_as_they_are_asked_for() -> None:
    readers = Readers(2)
    ahead = ReadAhead(Rows(100), readers, lambda count: None)
    for rows in (slice(40, 60), slice(0, 20), slice(20, 40), slice(90, 100), slice(0, 100), slice(None)):
        assert ahead[rows] == list(range(100))[rows]
    readers.close()


def test_an_error_is_raised_at_its_own_slice() -> None:
    readers = Readers(2)
    ahead = ReadAhead(Rows(100, broken=25), readers, lambda count: None)
    assert ahead[0:10] == list(range(10))
    assert ahead[10:20] == list(range(10, 20))
    with pytest.raises(OSError, match="row 25"):
        ahead[20:30]
    readers.close()
