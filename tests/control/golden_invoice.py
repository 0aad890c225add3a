"""One invoice that has everything an invoice can have; run as a module, it writes the files it is compared with.

Its bytes are a promise to customers: a change of them is a change of every invoice that was ever sent. The files of
months that were over before lines became exact are never written again: no code makes such months any more.
"""

import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, text

from manylora.control.billing.invoice_forms import FORMATS
from manylora.control.billing.invoices import InvoiceRule
from manylora.control.billing.ledger import correct, insert_records
from manylora.control.storage.database import database_url, migrate
from tests.control.plane import Plane, in_plane, record
from tests.control.process.placing_site import Site
from tests.control.process.scripted_placer import ScriptedPlacer
from tests.control.uploading import base_settings

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    rule: {form: folder / f"invoice.{'txt' if form == 'text' else form}" for form in FORMATS}
    for rule, folder in ((InvoiceRule.ROUNDED_LINES, GOLDEN), (InvoiceRule.EXACT_LINES, GOLDEN / "exact"))
}
OF_SECONDS = {form: GOLDEN / "seconds" / f"invoice.{'txt' if form == 'text' else form}" for form in FORMATS}
"""Files of an invoice with the seconds of dedicated deployments."""
BEFORE_EXACT_LINES = "0002"
"""The last revision of a database whose invoices all have rounded lines."""
SETTINGS = {"control.free_bases": ["house-model"]}
MONTH = "2023-12"
DAY_S = 86_400.0
PRICED, FREE, UNPRICED, ZERO = "Mistral-7b-instruct", "house-model", "unpriced", "SmolLM2-135M-Instruct"
FORMULA, MARKUP = '=HYPERLINK("http://x.example","a, b")', "<script>alert('x')</script> & \x1b[31m"


def begin_before_exact_lines(url: URL) -> None:
    """Give a database without tables those of then, with a tenant, and then today's."""
    migrate(url, BEFORE_EXACT_LINES)
    engine = create_engine(url.set(drivername="sqlite") if "sqlite" in url.drivername else url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tenants (id, number, uuid, name, plan, state, weight, created_ms, revision) "
                "VALUES ('first', 99, 'u-1', 'First', 'standard', 'active', 1, 1, 1)"
            )
        )
    engine.dispose()
    migrate(url)


async def golden_invoice(plane: Plane, rule: InvoiceRule) -> dict[str, bytes]:
    """The invoice of a month, made of rows of it and of the month before; each form's bytes by its name.

    Only months of exact lines have prices of cached prompt tokens.
    """
    await plane.call("POST", "/admin/tenants", {"id": "acme", "name": 'Müller & Söhne <b>"GmbH"</b>, 东京'})
    await plane.call("POST", "/admin/tenants", {"id": "beta", "name": "Beta"})
    await insert_records(plane.control, [_used(plane, 0, 3_000_000)])
    plane.clock.advance(20 * DAY_S)  # into December

    halves = {"adapter": MARKUP, "adapter_source": "hub", "charged_completion_tokens": 0}
    before = [
        _used(plane, 1, 1_000_000, adapter=None, adapter_source=None, adapter_owner=None),
        _used(plane, 2, 2_000_025),  # 0.400005 dollars
        _used(plane, 3, 7, adapter="triage/3"),
        _used(plane, 4, 5_000_000, adapter="sql/7", adapter_owner="beta"),
        _used(plane, 5, 400_000, adapter=FORMULA, adapter_source="hub", adapter_owner=None),
        _used(plane, 6, 25_000, **halves, adapter_owner=None),  # half a cent, rounded down to even
        _used(plane, 7, 75_000, **halves, adapter_owner="beta"),  # one cent and a half, rounded up
        _used(plane, 8, 9_000_000, base=FREE, adapter=None, adapter_source=None, adapter_owner=None),
        _used(plane, 9, 9_000_000, base=ZERO),
        _used(plane, 10, 9_000_000, base=UNPRICED),
        _used(plane, 11, 8_000_000, tenant="beta"),
    ]
    await insert_records(plane.control, before)
    price = {"base": PRICED, "input_nanousd": 150, "output_nanousd": 450, "effective_in_s": 5 * DAY_S}
    has_cached = rule is InvoiceRule.EXACT_LINES
    price |= {"cached_input_nanousd": 15} if has_cached else {}
    assert (await plane.call("POST", "/admin/prices", price)).status_code == 201
    plane.clock.advance(6 * DAY_S)
    cached = {"cached_tokens": 500_001, "charged_cached_tokens": 500_001} if has_cached else {}
    await insert_records(plane.control, [_used(plane, number, 2_000_000, **cached) for number in (12, 13)])

    await _take_back(plane, "usage-0", 1_000_000, 'charged twice, see "ticket 17"')
    await _take_back(plane, "usage-2", 1_000_000, "=1+1\n<i>no formula, no markup</i>")
    await _take_back(plane, "usage-12", 1_000, "a stream that broke")
    await _take_back(plane, "usage-13", 1_000, "a stream that broke")
    plane.clock.advance(30 * DAY_S)  # into January
    await _take_back(plane, "usage-4", 5_000_000, "not on this invoice any more")
    return {form: (await plane.call("GET", f"/admin/invoices/acme/{MONTH}?format={form}")).content for form in FORMATS}


async def golden_seconds(plane: Plane) -> dict[str, bytes]:
    """The invoice of a month with two dedicated deployments; one has two replicas, from the month before on."""
    site = Site(plane, ScriptedPlacer())
    await site.deploy(credit=10**14, minReplicas=2, maxReplicas=2)
    await site.start()
    await site.rounds(16 * DAY_S, 4 * DAY_S)  # into December
    own = {"adapter": None, "adapter_source": None, "adapter_owner": None}
    placed = {**own, "deployment": "mine", "charged_prompt_tokens": 7, "prompt_tokens": 7}
    await insert_records(plane.control, [_used(plane, 1, 1_000_000, **own), _used(plane, 2, 7, **placed)])
    night = {"name": "night", "config": {"baseModel": "Tiny-Base", "minReplicas": 1}}
    assert (await plane.call("POST", "/v2/deployments", night, key=site.key)).status_code == 200
    await site.start()
    await site.rounds(3_600.5, 1)
    assert (await plane.call("DELETE", "/v2/deployments/night", key=site.key)).status_code == 204
    await site.rounds(1, 1, 26 * DAY_S, 4 * DAY_S)  # into January
    await site.placing.bill(plane.control.now_ms())
    return {form: (await plane.call("GET", f"/admin/invoices/acme/{MONTH}?format={form}")).content for form in FORMATS}


def _used(plane: Plane, number: int, tokens: int, **changes: Any) -> Any:
    counts = {"charged_prompt_tokens": tokens, "prompt_tokens": tokens}
    return record(number, opened_ms=plane.control.now_ms(), **(counts | changes))


async def _take_back(plane: Plane, row: str, tokens: int, reason: str) -> None:
    await correct(
        plane.control,
        row,
        correction_id=f"fix-{row}",
        prompt_tokens=-tokens,
        completion_tokens=-10,
        reason=reason,
        author="admin",
    )


def main() -> None:
    rule = InvoiceRule.EXACT_LINES

    async def write(plane: Plane) -> None:
        for form, content in (await golden_invoice(plane, rule)).items():
            FILES[rule][form].write_bytes(content)

    async def write_seconds(plane: Plane) -> None:
        for form, content in (await golden_seconds(plane)).items():
            OF_SECONDS[form].write_bytes(content)

    for scenario, files in ((write, FILES[rule]), (write_seconds, OF_SECONDS)):
        with tempfile.TemporaryDirectory() as folder:
            url = database_url("", Path(folder))
            migrate(url)
            files["text"].parent.mkdir(exist_ok=True)
            own = base_settings(Path(folder)) if files is OF_SECONDS else {}
            in_plane(url, Path(folder), scenario, settings={**SETTINGS, **own})


if __name__ == "__main__":
    main()
