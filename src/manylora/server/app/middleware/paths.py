"""The one form of each path: without repeated slashes and without the prefix of a deployment."""

import re
from collections.abc import Callable
from urllib.parse import unquote

from manylora.errors import DeploymentNotFound
from manylora.http.paths import deployment_path
from manylora.server.http.context import App, Receive, Scope, Send
from manylora.system.printable import quoted

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class DeploymentMiddleware:
    """Turns `/{tenant}/deployments/v2/llms/{name}/…` into the route `/…` of that tenant.

    Raises `DeploymentNotFound`.
    """

    def __init__(self, app: App, *, serves: Callable[[str], bool]) -> None:
        """`serves` returns whether a name means a model of this server."""
        self._app = app
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = deployment_path(scope["path"])
        if found is not None:
            if not _TENANT.fullmatch(found.tenant) or not self._serves(unquote(found.name)):
                raise DeploymentNotFound(f"deployment {quoted(found.name)} was not found")
            scope["path"] = found.rest  # in place: the layers outside log the route
            scope["manylora"].path_tenant = found.tenant
        await self._app(scope, receive, send)
