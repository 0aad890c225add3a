"""The routes of an application, as its framework has them."""

from collections.abc import Iterator
from typing import Any


def routes_of(routes: Any) -> Iterator[tuple[str, str]]:
    """Method and path of each route, those of nested rooms included."""
    for route in routes:
        inner = route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else (route,)
        for each in inner:
            yield from ((method, each.path) for method in each.methods if method != "HEAD")
