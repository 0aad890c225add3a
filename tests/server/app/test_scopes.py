"""The server's routes and the table of scopes are the same."""

from collections.abc import Callable
from typing import Any, cast

from manylora.http.paths import SERVER_ROUTES
from tests.server.conftest import House
from tests.support.routes import routes_of


def test_every_route_of_the_server_has_its_scope(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        api = cast(Any, house.app._asgi._app)
        assert set(routes_of(api.router.routes)) == {(route.method, route.path) for route in SERVER_ROUTES}

    in_house(scenario)
