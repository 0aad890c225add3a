"""Pages of OpenAI's lists: `limit` and `after` of the query, and the envelope of the reply."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from manylora.errors import InvalidParameter
from manylora.server.http.routing import Parameter

Item = TypeVar("Item")


def page_parameters(most: int) -> list[Parameter]:
    """Return the descriptions of a page's parameters."""
    return [
        Parameter("limit", "query", f"Items of the page, 1 to {most}"),
        Parameter("after", "query", "The id behind which the page begins"),
    ]


def page_of(
    items: Sequence[Item],
    query: dict[str, str],
    shown: Callable[[Item], dict[str, object]],
    *,
    id_of: Callable[[Item], str],
    default: int,
    most: int,
) -> dict[str, object]:
    """Return a page of items in their order. Raises `InvalidParameter` for a wrong `limit` or an unknown `after`."""
    limit, begin = _limit(query.get("limit"), default, most), 0
    if after := query.get("after"):
        positions = [number for number, item in enumerate(items) if id_of(item) == after]
        if not positions:
            raise InvalidParameter("`after` must be the id of an item of the list", parameter="after")
        begin = positions[0] + 1
    some = items[begin : begin + limit]
    return {
        "object": "list",
        "data": [shown(item) for item in some],
        "first_id": id_of(some[0]) if some else None,
        "last_id": id_of(some[-1]) if some else None,
        "has_more": begin + limit < len(items),
    }


def _limit(given: str | None, default: int, most: int) -> int:
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not 1 <= int(given) <= most:
        raise InvalidParameter(f"`limit` must be >= 1 and <= {most}. Given: {given[:40]!r}", parameter="limit")
    return int(given)
