"""The bill of dedicated deployments: the seconds of each replica as rows of the ledger, each second once.

A replica is billed over [ready_ms, left_ms), in whole seconds since 1970: the seconds of two adjacent intervals are
those of both together, so that no cut loses a second or bills one twice. Each goes to the key that paid as it began.
`placements.billed_s` is the first second that no row bills; it moves in the transaction of the row, and the row's id
has the interval's beginning.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.ledger import add_spending, pay_rows
from manylora.control.budgets.payers import has_unbilled, paid_parts, payers_of
from manylora.control.budgets.spending import count_rows
from manylora.control.calendar import booked_ms_of, bounds_of, month_of
from manylora.control.control import Control
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import ledger, placements

HOUR_S = 3_600
FINISH = "placed"
"""The finish reason of a row that bills seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Seconds [begin_s, end_s) since 1970 of one replica, within one month, and their cost."""

    begin_s: int
    end_s: int
    nanousd: int

    @property
    def seconds(self) -> int:
        return self.end_s - self.begin_s


def stretches(first_s: int, begin_s: int, end_s: int, hourly_nanousd: int) -> list[Stretch]:
    """Return the parts of [begin_s, end_s) of a replica that is billed from `first_s` on, cut at ends of months.

    The cost of a part is the difference of the costs up to its end and up to its beginning, each rounded down to a
    nano-dollar. So the parts of any cut cost together what the whole costs.
    """
    found = []
    while begin_s < end_s:
        month_end_s = bounds_of(month_of(1000 * begin_s))[1] // 1000
        cut_s = min(end_s, month_end_s)
        cost = _cost(cut_s - first_s, hourly_nanousd) - _cost(begin_s - first_s, hourly_nanousd)
        found.append(Stretch(begin_s=begin_s, end_s=cut_s, nanousd=cost))
        begin_s = cut_s
    return found


def _cost(seconds: int, hourly_nanousd: int) -> int:
    return seconds * hourly_nanousd // HOUR_S


async def bill_now(control: Control) -> None:
    """Bill in a transaction of its own, which locks the rows of all replicas, each after the one before it.

    A transaction that changes a replica's row first, and then bills, waits for one that does so with another row.
    """
    async with control.database.write() as connection:
        await bill_seconds(control, connection)


async def bill_seconds(control: Control, connection: AsyncConnection) -> int:
    """Bill every second that has passed and that no row bills. Return the number of new rows.

    A replica that is ready is billed up to the last moment at which its process was seen. The moment of the rows is
    that after the locks: the cut of an invoice and the hour of an export trust that a row is committed soon after it.
    The locks come in one order: replicas by number, then tenants, then sums.
    """
    asked = select(placements).where(has_unbilled()).order_by(placements.c.number).with_for_update()
    due = (await connection.execute(asked)).all()
    await lock_tenants(connection, {placed.tenant for placed in due})
    payers = await payers_of(connection, {placed.deployment for placed in due})
    now_ms = control.now_ms()
    rows: list[dict[str, Any]] = []
    for placed in due:
        until_ms = placed.seen_ms if placed.left_ms is None else placed.left_ms
        end_s = min(until_ms, now_ms) // 1000
        if end_s > placed.billed_s:
            for begin_s, cut_s, key in paid_parts(payers[placed.deployment], placed.billed_s, end_s):
                parts = stretches(placed.ready_ms // 1000, begin_s, cut_s, placed.hourly_nanousd)
                rows += [_row(placed, part, key, now_ms) for part in parts]
            moved = update(placements).where(placements.c.number == placed.number).values(billed_s=end_s)
            await connection.execute(moved)
    if rows:
        inserting = control.database.insert_once(ledger).returning(ledger.c.id)
        new = set((await connection.execute(inserting, rows)).scalars())
        rows = [row for row in rows if row["id"] in new]
        spent = Counter[tuple[str, str, str, int]]()
        for row in rows:  # no edge spent it
            spent[row["tenant"], row["key"] or "", "", month_of(row["booked_ms"])] += row["cost_nanousd"]
        await add_spending(control, connection, spent)
        await pay_rows(connection, rows, now_ms)
        await count_rows(control.database, connection, rows, now_ms)
    return len(rows)


def _row(placed: Row[Any], part: Stretch, key: str | None, now_ms: int) -> dict[str, Any]:  # columns of several types
    """Return the row of the ledger of a part: without tokens, and without the price of a token."""
    begin_ms = 1000 * part.begin_s
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
    charges = ("charged_prompt_tokens", "charged_completion_tokens", "charged_cached_tokens", "num_sequences")
    return {
        "id": f"{FINISH}-{placed.id}-{part.begin_s}",
        "tenant": placed.tenant,
        "key": key,
        "request_id": placed.id,
        "edge": "",
        "base": placed.base,
        "opened_ms": begin_ms,
        "booked_ms": booked_ms_of(begin_ms, now_ms),
        **dict.fromkeys((*counts, *charges), 0),
        "finish_reason": FINISH,
        **dict.fromkeys(("adapter", "adapter_source", "adapter_owner", "corrects", "reason")),
        "input_nanousd": 0,
        "output_nanousd": 0,
        "cached_input_nanousd": 0,
        "cost_nanousd": part.nanousd,
        "received_ms": now_ms,
        "deployment": placed.name,
        "seconds": part.seconds,
        "hourly_nanousd": placed.hourly_nanousd,
    }
