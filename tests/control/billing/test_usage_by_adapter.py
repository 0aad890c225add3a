"""Sums by adapter: adapters of the same name that have several owners are apart, each as the tenant calls it."""

from collections.abc import Callable

from manylora.control.billing.ledger import insert_records
from manylora.tenancy import called_adapter
from tests.control.plane import Plane, record

OWNERS = ("acme", "rival", "acme", "rival", "zeta", None)
NAMES = ("triage/1", "triage/1", "triage/2", "a/1,b/2", "triage/1", "triage")
"""A name without an owner is of a folder or a hub."""


def test_a_name_of_another_owner_begins_with_the_owner(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        rows = [
            record(n, opened_ms=plane.control.now_ms(), adapter=name, adapter_owner=owner, charged_completion_tokens=n)
            for n, (name, owner) in enumerate(zip(NAMES, OWNERS, strict=True), 1)
        ]
        rows.append(record(9, opened_ms=plane.control.now_ms(), adapter=None, adapter_owner=None))
        await insert_records(plane.control, rows)
        expected = {each.adapter and called_adapter("acme", each.adapter, each.adapter_owner): each for each in rows}
        assert {"triage/1", "rival/triage/1", "rival/a/1,rival/b/2", "zeta/triage/1", "triage", None} < {*expected}
        for path, who in (("/v1/account/usage?by=adapter", key), ("/admin/usage?by=adapter,tenant", "")):
            found, after = dict[str | None, dict[str, int]](), ""
            while after is not None:
                asked = f"{path}&limit=2&after={after}"
                page = (await plane.call("GET", asked, **({"key": who} if who else {}))).json()
                assert page["has_more"] == (page["next"] is not None)
                found |= {row["names"][0]: row for row in page["usage"]}
                after = page["next"]
            assert {name: row["charged_completion_tokens"] for name, row in found.items()} == {
                name: each.charged_completion_tokens for name, each in expected.items()
            }

    run(scenario)
