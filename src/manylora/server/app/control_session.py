"""The session of a server with its control plane: its copy of the facts, its leases of credit, its usage records."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from manylora.clock import Clock
from manylora.config.folders import metering_dir
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid, ControlUnavailable
from manylora.http.loopback import is_loopback
from manylora.server.access.access import Access
from manylora.server.access.control_client import HttpControlClient
from manylora.server.access.credit import LeasedCredit
from manylora.server.access.directory import Directory
from manylora.server.access.fleet_limits import FleetLimits
from manylora.server.app.control_proxy import ControlProxy
from manylora.server.dedicated.proxy import DedicatedProxy
from manylora.server.dedicated.waits import DeploymentWaits
from manylora.server.metering.meter import Meter

log = logging.getLogger(__name__)

START_WAIT_S = 60.0
"""Seconds for which a server waits at its start for the first answer of a control plane at a URL."""
START_PAUSE_S = 0.5
ORPHAN_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedControl:
    """A control plane in this process.

    admin_key  the operator's first key, at the first start only
    """

    app: Callable[..., Any]
    edge_token: str
    admin_key: str | None
    close: Callable[[], Awaitable[None]]


ControlFactory = Callable[[Config, bool], Awaitable[HostedControl]]
"""Opens a control plane in this process. The second argument is whether the server needs keys."""


def is_key_needed(config: Config) -> bool:
    """Return whether callers need a key, from `server.auth` and the server's address.

    Raises `ConfigInvalid` for a server without keys that other machines can reach, unless `server.allow_open` is set.
    """
    server = config.server
    is_local = is_loopback(server.host)
    if server.auth == "on" or (server.auth == "auto" and not is_local):
        return True
    if not is_local and not server.allow_open:
        raise ConfigInvalid(
            f"server.auth is off and {server.host} can be reached by other machines: any caller could use this server. "
            "If that is meant, say so with `--set server.allow_open=true`; otherwise leave server.auth on."
        )
    return False


@dataclass
class ControlSession:
    """One server's session with its control plane; `join` opens it, `leave` closes it."""

    meter: Meter
    directory: Directory
    client: HttpControlClient
    control: Callable[..., Any]
    admin_key: str | None
    is_key_needed: bool
    _config: Config
    _clock: Clock
    _close: Callable[[], Awaitable[None]]
    _following: list[asyncio.Task[None]] = field(default_factory=list)
    _limits: FleetLimits | None = None
    _dedicated: DedicatedProxy | None = None

    @staticmethod
    async def join(config: Config, factory: ControlFactory, clock: Clock) -> "ControlSession":
        """Lock the meter's folder, open or reach the control plane, and fetch its facts.

        Raises `ConfigInvalid` for settings that do not fit, `ControlUnavailable` if it cannot be reached for a minute.
        """
        needed = is_key_needed(config)
        meter = Meter(
            metering_dir(config),
            clock=clock,
            keeps_journals=config.metering.keep_journals,
            ship_s=config.metering.ship_s,
            durable_wait_s=config.metering.durable_wait_s,
            deployment=config.control.deployment.partition("/")[2] or None,
        )
        try:
            return await _joined(config, factory, clock, meter, is_needed=needed)
        except BaseException:
            await meter.close()
            raise

    def admit(self, bases: Sequence[str]) -> Access:
        """Return the access check of a server of these base models.

        Raises `ConfigInvalid` for a server with keys of which a base model has no price and is not free.
        """
        control = self._config.control
        now_ms = int(1000 * self._clock.wall_s())
        for base in bases:
            if self.is_key_needed and base not in control.free_bases and self.directory.price(base, now_ms) is None:
                raise ConfigInvalid(
                    f"the base model {base} has no price, and with keys on its tokens are billed. Set one on the "
                    f"control plane (`manylora prices set {base} … --force`), or say that it is free: "
                    f"`--set control.free_bases={base}`"
                )
        self.client.bases = tuple(bases)
        leased = LeasedCredit(
            self.client,
            self._clock,
            edge=self.meter.edge,
            lease_nanousd=control.lease_nanousd,
        )
        access = Access(
            self._clock,
            is_key_needed=self.is_key_needed,
            directory=self.directory,
            leased=leased,
            free_bases=control.free_bases,
            only_tenant=control.deployment.partition("/")[0],
        )
        if control.url:  # other edges may share the control plane, and with it the limits
            self._limits = access.join_fleet(self.client, self.meter.edge)
        return access

    def dedicated(self, access: Access) -> DedicatedProxy | None:
        """Return the proxy for dedicated deployments, which `leave` closes; None for a replica of one itself."""
        config = self._config
        if config.control.deployment:
            return None
        waits = DeploymentWaits(
            self.directory,
            self.client,
            self._clock,
            edge=self.meter.edge,
            wait_s=config.placement.wait_s,
            max_waiting=config.placement.max_waiting,
        )
        self._dedicated = DedicatedProxy(access, waits, self._clock, max_body_bytes=config.server.max_body_bytes)
        return self._dedicated

    async def begin(self, is_kept: Callable[[str], bool] = lambda request_id: False) -> None:
        """Close the requests that an earlier edge left open, then poll the control plane and ship usage to it.

        Args:  is_kept  as in `Meter.recovered`
        """
        await self.meter.recovered(is_kept)
        self.meter.start_shipping(self.client)
        self._following = [asyncio.create_task(self.directory.follow())]
        if self._limits is not None:
            self._following.append(asyncio.create_task(self._limits.follow()))

    def watch_control(self, end: Callable[[], None]) -> None:
        """Call `end` once the control plane is silent for `placement.orphan_s`, at a replica of a deployment."""
        if self._config.control.deployment:
            self._following.append(asyncio.create_task(self._end_as_orphan(end)))

    async def _end_as_orphan(self, end: Callable[[], None]) -> None:
        while self.directory.age_s <= self._config.placement.orphan_s:  # noqa: ASYNC110  an age is no event
            await asyncio.sleep(ORPHAN_LOOK_S)
        log.warning("control.silent age_s=%.0f: this replica of a deployment ends", self.directory.age_s)
        end()

    async def leave(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        if self._limits is not None:
            await self._limits.leave()
        if self._dedicated is not None:
            await self._dedicated.close()
        await self.directory.report_acts()
        await self.directory.report_uses(at_once=True)
        await self.meter.stop(self.client)
        await self.client.close()
        await self._close()


async def _first_answer(directory: Directory, clock: Clock, *, wait_s: float) -> None:
    """Fetch the control plane's facts. A control plane at a URL may start later than this server.

    Raises `ControlUnavailable` if it has not answered within `wait_s` seconds.
    """
    end_s = clock.monotonic_s() + wait_s
    while True:
        try:
            await directory.refresh()
        except ControlUnavailable as error:
            if clock.monotonic_s() >= end_s:
                raise
            log.warning("control.unavailable error=%s next_try_s=%g", error.message, START_PAUSE_S)
            await asyncio.sleep(START_PAUSE_S)
        else:
            return


async def _joined(
    config: Config, factory: ControlFactory, clock: Clock, meter: Meter, *, is_needed: bool
) -> ControlSession:
    settings = config.control
    if settings.url:
        if not settings.edge_token:
            raise ConfigInvalid("control.url needs control.edge_token, the same as the control plane's")
        client, admin_key = HttpControlClient(settings.edge_token, url=settings.url), None
        proxy = ControlProxy(settings.url, settings.edge_token, clock, public_url=config.server.public_url)
        control: Callable[..., Any] = proxy
        close: Callable[[], Awaitable[None]] = proxy.close
    else:
        hosted = await factory(config, is_needed)
        client, admin_key = HttpControlClient(hosted.edge_token, app=hosted.app), hosted.admin_key
        control, close = hosted.app, hosted.close
    directory = Directory(client, clock, poll_s=settings.poll_s, max_age_s=settings.snapshot_max_age_s)
    try:
        await _first_answer(directory, clock, wait_s=START_WAIT_S if settings.url else 0.0)
    except BaseException:
        await client.close()
        await close()
        raise
    return ControlSession(
        meter=meter,
        directory=directory,
        client=client,
        control=control,
        admin_key=admin_key,
        is_key_needed=is_needed,
        _config=config,
        _clock=clock,
        _close=close,
    )
