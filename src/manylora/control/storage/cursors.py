"""Cursors of lists that show the newest row first: the moment and the id of the last row of a page."""

import re
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, or_

from manylora.errors import InvalidParameter

_CURSOR = re.compile(r"(\d{1,15})-([a-z]{1,12}_[0-9a-z]{1,60})")


def newest_first(table: Table) -> tuple[ColumnElement[Any], ...]:
    """Return the order of such a list, by the columns `created_ms` and `id`."""
    return table.c.created_ms.desc(), table.c.id.desc()


def is_before(table: Table, before: str) -> ColumnElement[bool]:
    """Select the rows that follow a cursor in `newest_first`. Raise `InvalidParameter` for a text that is none."""
    if (found := _CURSOR.fullmatch(before)) is None:
        raise InvalidParameter("`before` must be that of the page before", parameter="before")
    moment_ms, last = int(found[1]), found[2]
    return or_(table.c.created_ms < moment_ms, and_(table.c.created_ms == moment_ms, table.c.id < last))


def cursor_of(row: Any) -> str:
    """Return the cursor of a row with `created_ms` and `id`."""
    return f"{row.created_ms}-{row.id}"
