"""Paths with segments that an HTTP client resolves before it sends."""

import pytest

from manylora.http.segments import MOST_ENCODINGS, has_dot_segment


def encoded(text: str, times: int) -> str:
    return text if times == 0 else encoded(text.replace("%", "%25"), times - 1)


@pytest.mark.parametrize("segment", [".", "..", "%2e", "%2E%2e", ".%2e", "%%32e."])
@pytest.mark.parametrize("times", range(MOST_ENCODINGS + 3))
def test_dot_segments_are_found_in_any_encoding(segment: str, times: int) -> None:
    for path in (f"/v1/{segment}/x", f"/v1/{segment}", f"{segment}/x", f"/v1\\{segment}\\x", f"/v1%5C{segment}%2fx"):
        assert has_dot_segment(encoded(path, times)), path


@pytest.mark.parametrize("path", ["/", "/v1/models", "/a..b/.c/d./...", "/100%", "/%zz/%ff", "/a%20b", "/a%2520b"])
def test_other_dots_and_percent_signs_are_letters(path: str) -> None:
    assert not has_dot_segment(path)


def test_an_endless_encoding_takes_few_rounds() -> None:
    assert has_dot_segment("/" + "%" + "25" * 30_000 + "41")
