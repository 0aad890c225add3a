"""Amounts become text in one place: whole, with all their digits, and the same wherever they are shown."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.cli import costs
from manylora.cli.remote.output import dollars as shown_by_cli
from manylora.control.billing.invoice_forms import usd as shown_by_invoices
from manylora.control.http.deployment_schemas import price_text as shown_by_deployments
from manylora.money import NANO, cost_nanousd, dollars, rounded

AMOUNTS = st.integers(-(10**17), 10**17)


@given(AMOUNTS)
def test_every_place_shows_the_same_exact_amount(nanousd: int) -> None:
    assert shown_by_cli(nanousd) == dollars(nanousd)
    for text in (shown_by_cli(nanousd), shown_by_deployments(nanousd), shown_by_invoices(nanousd)):
        assert Fraction(text.replace("$", "").replace(",", "")) * NANO == nanousd


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(0, "$0.00"), (200, "$0.0000002"), (1_234_500_000_000, "$1,234.50"), (-5 * NANO, "-$5.00"), (1, "$0.000000001")],
)
def test_an_amount_has_all_its_digits_and_two_decimals_at_least(nanousd: int, text: str) -> None:
    assert dollars(nanousd) == text


@given(st.fractions(-(10**12), 10**12), st.integers(0, 9))
def test_a_rounded_amount_is_the_nearest_the_even_one_of_two(amount: Fraction, decimals: int) -> None:
    unit = NANO // 10**decimals
    assert rounded(amount, decimals) == round(amount / unit) * unit
    assert 2 * abs(rounded(amount, decimals) - amount) <= unit
    assert costs.dollars(amount, decimals) == dollars(rounded(amount, decimals), least_decimals=decimals)


@given(*[st.integers(-(10**9), 10**9)] * 3, *[st.integers(0, 10**6)] * 3)
def test_a_cost_is_the_sum_of_its_parts(
    prompt: int, cached: int, completion: int, of_input: int, of_cached: int, of_output: int
) -> None:
    def cost(**tokens: int) -> int:
        counts = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0} | tokens
        return cost_nanousd(**counts, input_nanousd=of_input, cached_input_nanousd=of_cached, output_nanousd=of_output)

    uncached, all_cached = cost(prompt_tokens=prompt - cached), cost(prompt_tokens=cached, cached_tokens=cached)
    whole = cost(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    assert whole == uncached + all_cached + completion * of_output
