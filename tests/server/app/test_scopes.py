"""The running application's routes, the table of paths, and the guards that each route declares."""

from collections.abc import Callable

from fastapi.routing import APIRoute

from manylora.http.paths import PATHS, SERVER_ROUTES, Trait
from manylora.server.http.routing import Guard
from tests.server.conftest import House
from tests.support.routes import routes_of

UNKNOWN = "/{path:path}"
"""The route of all other paths."""


def routes(house: House) -> list[APIRoute]:
    assert all(isinstance(route, APIRoute) for route in house.app.api.routes)
    return [route for route in house.app.api.routes if isinstance(route, APIRoute)]


def test_the_server_has_the_routes_of_the_table(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        known = [route for route in routes(house) if route.path != UNKNOWN]
        assert set(routes_of(known)) == {(route.method, route.path) for route in SERVER_ROUTES}
        assert [route.path for route in routes(house)].index(UNKNOWN) == len(known), "it hides routes behind it"

    in_house(scenario)


def test_every_route_declares_its_guard_at_its_router(in_house: Callable[..., None]) -> None:
    """A route whose guard asks for no scope stands in the table as keyless, and all that take a body have it read."""

    async def scenario(house: House) -> None:
        for route in routes(house):
            (guard,) = (dependency.call for dependency in route.dependant.dependencies)
            assert isinstance(guard, Guard), route.path
            rows = [SERVER_ROUTES.at(route.path)[method] for method in route.methods or () if route.path != UNKNOWN]
            is_keyless = bool(rows) and all(not row.scopes for row in rows)
            assert guard.asks_scope is not is_keyless, route.path
            is_looking = (route.methods or set()) <= {"GET", "HEAD"}
            reads_itself = any(Trait.BYTES in row.traits for row in rows)
            assert guard.reads_body is not (is_looking or reads_itself), route.path

    in_house(scenario)


def test_every_path_of_the_server_is_answered_by_the_server(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        for route in routes(house):
            assert PATHS.area_of(route.path).component.name == "SERVER", route.path

    in_house(scenario)
