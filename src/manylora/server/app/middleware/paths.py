"""The one form of each path: without repeated slashes and without the prefix of a deployment."""

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote

from manylora.clock import Clock
from manylora.errors import DeploymentNotFound, ManyloraError, RouteNotFound
from manylora.http.paths import PATHS, Component, DeploymentPath, deployment_path
from manylora.http.segments import has_dot_segment
from manylora.server.app.middleware.disconnect import DisconnectMiddleware
from manylora.server.dedicated.proxy import DedicatedProxy
from manylora.server.http.context import App, HttpContext, Receive, Scope, Send
from manylora.system.printable import printable, quoted
from manylora.tenancy import DeploymentFacts

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class DeploymentMiddleware:
    """Turns `/{tenant}/deployments/v2/llms/{name}/…` into the route `/…` of that tenant.

    A deployment has the server's own routes alone: none of the control plane, which are not of one deployment.
    A path with `..` has no route, since a replica would get the path that it leads to.
    Raises `DeploymentNotFound`, `RouteNotFound`.
    """

    def __init__(
        self, app: App, *, serves: Callable[[str], bool], clock: Clock, dedicated: DedicatedProxy | None = None
    ) -> None:
        """`serves` returns whether a name means a model of this server. `dedicated` has the deployments of tenants."""
        self._app = app
        self._serves = serves
        self._clock = clock
        self._dedicated = dedicated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = deployment_path(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        name = unquote(found.name)
        is_tenant = bool(_TENANT.fullmatch(found.tenant)) and found.tenant not in PATHS.first_words
        is_shared = is_tenant and self._serves(name)
        facts = None
        if is_tenant and not is_shared and self._dedicated is not None:
            facts = self._dedicated.waits.find(found.tenant, name)
        if not is_shared and facts is None:
            raise DeploymentNotFound(f"deployment {quoted(found.name)} was not found")
        if PATHS.area_of(found.rest).component is not Component.SERVER or has_dot_segment(found.rest):
            raise RouteNotFound(f"no route {scope['method']} {printable(scope['path'])}")
        scope["path"] = found.rest  # in place: the layers outside log the route
        scope["manylora"].path_tenant = found.tenant
        scope["manylora"].deployment = name
        if facts is None or self._dedicated is None:
            await self._app(scope, receive, send)
        else:
            await DisconnectMiddleware(partial(self._pass_on, self._dedicated, found, facts))(scope, receive, send)

    async def _pass_on(
        self,
        dedicated: DedicatedProxy,
        found: DeploymentPath,
        facts: DeploymentFacts,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        try:
            await dedicated.pass_on(scope, receive, send, found, facts)
        except ManyloraError as error:  # within the group of tasks, which would wrap it
            await HttpContext(scope, self._clock).fail(error)
        except ConnectionResetError:
            return  # the caller left with its body, or its replica in the middle of the reply: the connection ends
