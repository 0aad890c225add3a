"""The waits of a stream beside a long prompt, from steps of known lengths."""

import pytest
from benchmarks.arithmetic.long_context import waits_of


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ([True, True, True], [(0, 1.0), (0, 2.0), (0, 4.0)]),
        ([False, True, True], [(1, 3.0), (0, 4.0)]),
        ([True, False, False], [(0, 1.0), (2, 6.0)]),
        ([False, False, False], [(3, 7.0)]),
    ],
)
def test_a_wait_ends_with_the_step_of_its_token(moved: list[bool], expected: list[tuple[int, float]]) -> None:
    assert waits_of(moved, [1.0, 2.0, 4.0]) == expected
