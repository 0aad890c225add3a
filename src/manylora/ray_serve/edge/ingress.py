"""The ingress deployment: the edge's application in an actor, behind Ray Serve's HTTP proxy."""

import asyncio
import logging
import secrets
from dataclasses import dataclass

from ray.exceptions import TaskCancelledError
from ray.serve.handle import DeploymentHandle

from manylora.clock import SystemClock
from manylora.config.folders import storage_dir
from manylora.config.settings import Config
from manylora.console.application import create_console
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.ray_serve.edge.announcing import log_announce
from manylora.ray_serve.edge.asgi import IngressApp
from manylora.ray_serve.edge.following import follow
from manylora.ray_serve.edge.handle_transport import HandleTransport
from manylora.ray_serve.edge.serve_handles import CARRIER_ERRORS, ServeCalls
from manylora.server.app.control_session import ControlSession
from manylora.server.app.run import EdgeClient, close_clients, start_application
from manylora.server.app.starting import StartingApp
from manylora.server.engine_client.transport import Transport
from manylora.server.storage.storage import open_storage, plane_mark
from manylora.system.freed_memory import release_regularly
from manylora.system.log_lines import configure_logs
from manylora.system.private_files import keep_private
from manylora.wiring.control import host_control

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOrder:
    """The work of an edge: the settings, and those of each base, the default first."""

    config: Config
    bases: tuple[Config, ...]


class Edge:
    """One edge. Its start waits for a replica of each base, whose facts it needs."""

    async def __init__(self, order: EdgeOrder, *handles: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        """Join the control plane, and start the application. Raises as `run_server`."""
        keep_private()
        configure_logs("edge")
        release_regularly()
        self._front = StartingApp(SystemClock())
        name = secrets.token_hex(4)
        config, announce = order.config, log_announce()
        self._membership = await ControlSession.join(config, host_control, SystemClock())
        if self._membership.admin_key is not None:
            announce.admin_key(self._membership.admin_key)
        self._following: list[asyncio.Task[None]] = []
        self._clients = [
            EdgeClient.open(base, self._transport(base, handle, name), self._membership.meter, number)
            for number, (base, handle) in enumerate(zip(order.bases, handles, strict=True))
        ]
        plane = plane_mark(self._membership.directory.pepper)
        self._storage = open_storage(
            storage_dir(config), self._membership.client, SystemClock(), config.storage, plane=plane
        )
        self._app = await start_application(
            config, self._membership, self._clients, self._storage, announce, console=create_console
        )
        self._front.open(self._app)

    def _transport(self, base: Config, handle: DeploymentHandle, name: str) -> Transport:
        """Return the transport to the replicas of a base, as `ray.mode` says."""
        calls = ServeCalls(handle, name)
        if base.ray.mode == "handle":
            return HandleTransport(calls, base)
        replicas = ListedReplicas()
        self._following.append(asyncio.create_task(follow(handle, replicas, base.ray.signal_s, CARRIER_ERRORS)))
        wake = None if base.ray.least_engines else calls.ready  # a call without a replica makes Serve start one
        return FleetTransport(base, replicas, on_progress=log.info, wake=wake)

    def __serve_build_asgi_app__(self) -> IngressApp:
        """Return the application; Serve calls this method after the start."""
        return IngressApp(self._front, left=TaskCancelledError)

    def check_health(self) -> None:
        """Raise nothing: an edge whose engines are gone answers 503, and a new edge would answer the same."""

    async def __del__(self) -> None:
        """End the edge in the order of `run_server`, after Serve's wait for the requests under way."""
        self._app.admission.is_draining = True
        await self._app.stop()
        await close_clients(self._clients)
        for task in self._following:
            task.cancel()
        self._app.close()
        self._storage.close()
        await self._membership.leave()
