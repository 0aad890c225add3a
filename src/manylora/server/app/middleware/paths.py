"""The one form of each path: without repeated slashes and without the prefix of a deployment."""

import re
from collections.abc import Callable
from urllib.parse import unquote

from manylora.errors import DeploymentNotFound, RouteNotFound
from manylora.http.paths import PATHS, Component, deployment_path
from manylora.server.http.context import App, Receive, Scope, Send
from manylora.system.printable import printable, quoted

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class DeploymentMiddleware:
    """Turns `/{tenant}/deployments/v2/llms/{name}/…` into the route `/…` of that tenant.

    A deployment has the server's own routes alone: none of the control plane, which are not of one deployment.
    Raises `DeploymentNotFound`, `RouteNotFound`.
    """

    def __init__(self, app: App, *, serves: Callable[[str], bool]) -> None:
        """`serves` returns whether a name means a model of this server."""
        self._app = app
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = deployment_path(scope["path"])
        if found is not None:
            is_tenant = _TENANT.fullmatch(found.tenant) and found.tenant not in PATHS.first_words
            if not is_tenant or not self._serves(unquote(found.name)):
                raise DeploymentNotFound(f"deployment {quoted(found.name)} was not found")
            if PATHS.area_of(found.rest).component is not Component.SERVER:
                raise RouteNotFound(f"no route {scope['method']} {printable(scope['path'])}")
            scope["path"] = found.rest  # in place: the layers outside log the route
            scope["manylora"].path_tenant = found.tenant
            scope["manylora"].deployment = unquote(found.name)
        await self._app(scope, receive, send)
