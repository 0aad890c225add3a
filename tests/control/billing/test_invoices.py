"""Invoices: a pure function of the ledger's rows, exact to the nano-dollar, in four forms that take names for text."""

import csv
import io
import json
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.control.billing.invoice_forms import FORMATS, render, usd
from manylora.control.billing.invoices import CENT, Invoice, InvoiceRow, InvoiceRule, make_invoice, round_half_even
from manylora.control.billing.ledger import insert_records
from manylora.control.calendar import bounds_of, month_of, parse_month, text_of
from manylora.errors import InvalidParameter
from manylora.money import NANO
from tests.control.plane import Plane, record

ROWS = st.builds(
    InvoiceRow,
    base=st.sampled_from(["Mistral-7b", "Llama"]),
    adapter=st.sampled_from([None, "triage/1", "triage/2"]),
    adapter_owner=st.sampled_from([None, "acme"]),
    price_version=st.sampled_from([None, 1, 2]),
    input_nanousd=st.sampled_from([0, 200]),
    output_nanousd=st.just(200),
    corrects_month=st.sampled_from([None, None, 202610, 202611]),
    reason=st.sampled_from([None, "double", "=1"]),
    requests=st.integers(0, 3),
    prompt_tokens=st.integers(-10, 10**9),
    completion_tokens=st.integers(-10, 10**9),
    cost_nanousd=st.integers(-(10**12), 10**15),
)


def invoice_of(
    *rows: InvoiceRow, tenant: str = "acme", name: str = "Acme", rule: InvoiceRule = InvoiceRule.EXACT_LINES
) -> Invoice:
    return make_invoice(tenant, name, 202611, rows, is_preliminary=False, rule=rule)


def row(**changes: Any) -> InvoiceRow:
    values: dict[str, Any] = {
        "base": "Mistral-7b-instruct",
        "adapter": "triage/2",
        "adapter_owner": "acme",
        "price_version": 1,
        "input_nanousd": 200,
        "output_nanousd": 200,
        "corrects_month": None,
        "reason": None,
        "requests": 1,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "cost_nanousd": 22_000,
    }
    return InvoiceRow(**(values | changes))


def correction(**changes: Any) -> InvoiceRow:
    return row(**({"corrects_month": 202610, "reason": "charged twice"} | changes))


RULES = st.sampled_from(InvoiceRule)


@given(st.lists(ROWS, max_size=20), st.randoms(use_true_random=False), RULES)
def test_an_invoice_is_a_pure_function(rows: list[InvoiceRow], source: random.Random, rule: InvoiceRule) -> None:
    """Whatever order rows come in, the bytes are the same; and nothing is lost on the way to the lines."""
    invoice = invoice_of(*rows, rule=rule)
    shuffled = list(rows)
    source.shuffle(shuffled)
    for form in FORMATS:
        assert render(invoice, form) == render(invoice_of(*shuffled, rule=rule), form)
    assert invoice.nanousd == sum(each.cost_nanousd for each in rows)
    assert sum(line.prompt_tokens for line in invoice.lines) == sum(each.prompt_tokens for each in rows)
    assert sum(line.requests for line in invoice.lines) == sum(each.requests for each in rows)


@given(st.integers(-(10**15), 10**15))
def test_amounts_are_rounded_once_half_to_even(nanousd: int) -> None:
    assert round_half_even(nanousd, CENT) == round(Fraction(nanousd, CENT))


def cost_of(counts: tuple[int, int, int], prices: tuple[int, int, int]) -> int:
    """Of prompt tokens, of those cached, and of completion tokens."""
    prompt, cached, completion = counts
    return (prompt - cached) * prices[0] + cached * prices[1] + completion * prices[2]


PRICED_ROWS = st.builds(
    lambda base, adapter, prices, counts, correction: row(
        base=base,
        adapter=adapter,
        input_nanousd=prices[0],
        cached_input_nanousd=prices[1],
        output_nanousd=prices[2],
        prompt_tokens=counts[0],
        cached_tokens=counts[1],
        completion_tokens=counts[2],
        cost_nanousd=cost_of(counts, prices),
        **correction,
    ),
    st.sampled_from(["Mistral-7b", "Llama"]),
    st.sampled_from([None, *(f"triage/{number}" for number in range(9))]),
    st.sampled_from([(0, 0, 0), (200, 200, 200), (200, 20, 333), (7, 0, 1)]),
    st.tuples(*[st.integers(-(10**6), 10**9)] * 3),
    st.sampled_from([{}, {}, {"corrects_month": 202610, "reason": "twice"}]),
)


@given(st.lists(PRICED_ROWS, max_size=30))
def test_the_total_is_the_ledgers_sum_rounded_once(rows: list[InvoiceRow]) -> None:
    """Within half a cent of it, however many lines there are; each line is its tokens times its prices, exactly."""
    invoice = invoice_of(*rows)
    body = json.loads(render(invoice, "json"))
    exact = sum(each.cost_nanousd for each in rows)
    assert 2 * abs(nano(body["total_usd"]) - exact) <= CENT
    assert nano(body["total_usd"]) % CENT == 0
    assert nano(body["exact_total_usd"]) == body["total_nanousd"] == exact
    cells = list(csv.DictReader(io.StringIO(render(invoice, "csv").decode())))
    for lines in (body["lines"], cells):
        assert sum(nano(line["usd"]) for line in lines) == exact
        for line in lines:
            counts = [int(line[f"{name}_tokens"]) for name in ("prompt", "cached", "completion")]
            prices = [nano(line[f"{name}_usd"]) for name in ("input", "cached_input", "output")]
            assert nano(line["usd"]) == cost_of((counts[0], counts[1], counts[2]), (prices[0], prices[1], prices[2]))
    for form in ("text", "html"):
        page = render(invoice, form).decode()
        assert body["exact_total_usd"] in page
        assert all(line["usd"] in page for line in body["lines"])


def nano(text: str) -> int:
    """Dollars as they are shown, in nano-dollars."""
    return int(Fraction(text) * NANO)


@pytest.mark.parametrize("nanousd", [4_998_000, 5_004_000])
def test_many_small_lines_come_to_their_sum(nanousd: int) -> None:
    lines = [row(adapter=f"a/{number}", cost_nanousd=nanousd) for number in range(60)]
    body = json.loads(render(invoice_of(*lines), "json"))
    assert body["total_usd"] == "0.30"
    assert body["exact_total_usd"] == usd(60 * nanousd)
    assert {line["usd"] for line in body["lines"]} == {usd(nanousd)}


def test_by_the_older_rule_the_printed_lines_add_up_to_the_printed_total() -> None:
    lines = [row(adapter=f"a/{number}", cost_nanousd=5_000_000 + number) for number in range(3)]
    body = json.loads(render(invoice_of(*lines, rule=InvoiceRule.ROUNDED_LINES), "json"))
    assert [line["usd"] for line in body["lines"]] == ["0.00", "0.01", "0.01"]
    assert (body["total_usd"], body["total_nanousd"]) == ("0.02", 15_000_003)
    assert "exact_total_usd" not in body


TEXT = """Invoice of 2026-11 for Acme (acme)

base                                         adapter         requests  prompt  completion $/prompt  $/completion      $
Mistral-7b-instruct                          -                      1     100          10 0.0000002     0.0000002   0.00
Mistral-7b-instruct                          acme/triage/2          2     200          20 0.0000002     0.0000002  44.00
Mistral-7b-instruct (correction of 2026-10)  acme/triage/2          0    -100           0 0.0000002     0.0000002  -1.00
  charged twice

"""


def test_the_text_is_laid_out_in_columns() -> None:
    rows = (
        row(adapter=None, adapter_owner=None),
        row(cost_nanousd=22 * 10**9),
        row(cost_nanousd=22 * 10**9),
        correction(requests=0, prompt_tokens=-100, completion_tokens=0, cost_nanousd=-(10**9)),
    )
    invoice = invoice_of(*rows, rule=InvoiceRule.ROUNDED_LINES)
    lines = render(invoice, "text").decode().splitlines()
    assert [line.split() for line in lines[:-1]] == [line.split() for line in TEXT.splitlines()]
    assert lines[-1].split() == ["total", "$43.00"]


@pytest.mark.parametrize(
    "name", ['=HYPERLINK("http://x")', "+1", "-1", "@x", "<script>alert(1)</script>", 'a"b,c\nd', "\x1b[31mred"]
)
def test_names_are_text_in_every_form(name: str) -> None:
    line = correction(adapter=name, adapter_owner=None, reason=name)
    invoice = invoice_of(line, tenant="acme", name=name)
    page = render(invoice, "html").decode()
    assert "<script>" not in page
    cells = list(csv.DictReader(io.StringIO(render(invoice, "csv").decode())))
    shown = json.loads(render(invoice, "json"))["lines"][0]
    for field in ("adapter", "reason"):
        assert not cells[0][field].startswith(("=", "+", "-", "@"))
        assert shown[field] == name
    text = render(invoice, "text").decode()
    assert "\x1b" not in text
    assert len(text.splitlines()) == 10


def test_a_csv_reads_back() -> None:
    invoice = invoice_of(correction(cost_nanousd=-22_000))
    (line,) = csv.DictReader(io.StringIO(render(invoice, "csv").decode()))
    assert (line["exact_usd"], line["kind"], line["month"]) == ("-0.000022", "correction", "2026-11")
    assert (line["corrects_month"], line["reason"]) == ("2026-10", "charged twice")


def test_months_are_of_utc() -> None:
    begin_ms, end_ms = bounds_of(202612)
    assert (month_of(begin_ms), month_of(end_ms - 1), month_of(end_ms)) == (202612, 202612, 202701)
    assert text_of(parse_month("2026-02")) == "2026-02"
    for wrong in ("2026-13", "26-01", "2026-1", "", "2026-011"):
        with pytest.raises(InvalidParameter):
            parse_month(wrong)


def test_dollars_are_exact() -> None:
    assert [usd(amount) for amount in (0, 200, 10**9, -1, 25 * 10**9)] == [
        "0.00",
        "0.0000002",
        "1.00",
        "-0.000000001",
        "25.00",
    ]


def test_usage_and_invoices_are_the_ledgers(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        await insert_records(plane.control, [record(5, opened_ms=plane.control.now_ms())])
        plane.clock.advance(40 * 86400)  # what is billed already
        now_ms = plane.control.now_ms()
        month = text_of(month_of(now_ms))
        await insert_records(
            plane.control,
            [
                *(record(number, opened_ms=now_ms) for number in range(3)),
                record(3, opened_ms=now_ms, adapter=None, adapter_source=None, adapter_owner=None),
                record(4, opened_ms=now_ms, tenant="beta"),
            ],
        )
        own = (await plane.call("GET", "/v1/account/usage", key=key)).json()
        assert {row["names"][1]: (row["requests"], row["cost_nanousd"]) for row in own["usage"]} == {
            None: (1, 22_000),
            "triage/2": (3, 66_000),
        }
        everyone = (await plane.call("GET", "/admin/usage?by=tenant")).json()["usage"]
        assert {row["names"][0]: row["requests"] for row in everyone} == {"acme": 4, "beta": 1}
        days = (await plane.call("GET", "/admin/usage?by=day,tenant&tenant=acme")).json()["usage"]
        assert sum(row["requests"] for row in days) == 4

        fixed = {"id": "fix-1", "corrects": "usage-0", "prompt_tokens": -100, "completion_tokens": -10}
        fixed |= {"reason": "charged twice"}
        assert (await plane.call("POST", "/admin/corrections", fixed)).status_code == 201
        invoice = (await plane.call("GET", f"/v1/account/invoices/{month}", key=key)).json()
        assert invoice["is_preliminary"] is True
        assert invoice["total_nanousd"] == 4 * 22_000 - 22_000
        assert [line["kind"] for line in invoice["lines"]].count("correction") == 1
        same = await plane.call("GET", f"/admin/invoices/acme/{month}?format=json")
        assert same.json() == invoice
        for form, kind in FORMATS.items():
            reply = await plane.call("GET", f"/v1/account/invoices/{month}?format={form}", key=key)
            assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
        theirs = (await plane.call("GET", f"/v1/account/invoices/{month}", key=other)).json()
        assert theirs["total_nanousd"] == 22_000
        assert (await plane.call("GET", f"/admin/invoices/acme/{month}", key=key)).status_code == 403

        rows = (await plane.call("GET", "/v1/account/ledger?limit=3", key=key)).json()
        rest = (await plane.call("GET", f"/v1/account/ledger?before={rows['before']}", key=key)).json()
        ids = [row["id"] for row in rows["rows"] + rest["rows"]]
        assert sorted(ids) == ["fix-1", "usage-0", "usage-1", "usage-2", "usage-3", "usage-5"]

    run(scenario)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/account/usage?month=2026-13", "month"),
        ("/v1/account/usage?month=0000-01", "month"),
        ("/v1/account/invoices/9999-12", "month"),
        ("/v1/account/usage?by=secret_hash", "by"),
        ("/v1/account/usage?by=base,base", "by"),
        ("/v1/account/invoices/2026-1", "month"),
        ("/v1/account/invoices/2026-11?format=pdf", "format"),
        ("/v1/account/ledger?limit=0", "limit"),
        ("/v1/account/ledger?before=x", "before"),
    ],
)
def test_what_cannot_be_asked_is_named(run: Callable[..., None], path: str, named: str) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        reply = await plane.call("GET", path, key=key)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, named)

    run(scenario)


def test_prices_are_set_in_versions(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        body = {"base": "mine", "input_nanousd": 500, "output_nanousd": 700, "force": True}
        assert (await plane.call("POST", "/admin/prices", body)).json()["version"] == 1
        plane.clock.advance(1)
        later = await plane.call("POST", "/admin/prices", body | {"effective_in_s": 60, "input_nanousd": 1})
        assert later.json()["version"] == 2
        listed = (await plane.call("GET", "/admin/prices?base=mine")).json()["prices"]
        assert [price["input_nanousd"] for price in listed] == [500, 1]
        for wrong in ({"input_nanousd": -1}, {"output_nanousd": 1.5}, {"base": ""}, {"per": "day"}):
            assert (await plane.call("POST", "/admin/prices", body | wrong)).status_code == 422

    run(scenario)
