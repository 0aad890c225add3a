"""Numbers of forms: what a visitor types becomes a number of the API, or a message, in no time."""

import pytest

from manylora.console.figures import MOST_DIGITS, nanousd_of, price_of_token, whole_number

HUGE = ["1e400000", "1e999999", "-1E5", "9" * (MOST_DIGITS + 1), "0." + "1" * 10, "9" * 100_000]
WRONG = ["", "-", ".", "$", "nan", "inf", "1_0", "٣", "1.2.3", "0x10", *HUGE]


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("25", 25 * 10**9),
        ("$0.5", 5 * 10**8),
        ("-1,000.000000001", -(10**12) - 1),
        (".25", 25 * 10**7),
        ("3.", 3 * 10**9),
    ],
)
def test_dollars_are_exact(text: str, nanousd: int) -> None:
    assert nanousd_of(text) == nanousd


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_no_amount_is_told(text: str) -> None:
    for read in (nanousd_of, price_of_token, lambda given: whole_number(given, "a limit")):
        if read is nanousd_of or text != "3.":
            with pytest.raises(ValueError, match="Given: "):
                read(text)


def test_whole_numbers_may_have_separators_and_a_percent_sign() -> None:
    assert [whole_number(text, "a share") for text in ("1,000", " 90 % ", "007")] == [1000, 90, 7]
