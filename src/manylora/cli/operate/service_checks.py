"""Checks of a server's surroundings: clock, ports, database, control plane, object storage."""

import asyncio
import ctypes
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.cli.operate.findings import Finding, failed, ok, warning
from manylora.clock import Clock, SystemClock

if TYPE_CHECKING:
    import httpx2

    from manylora.config.settings import Config

DENIED = (
    "it denies access",
    "set the variables of its credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), with the rights to read and to list",
)
NO_BUCKET = ("there is no such bucket or container", "make it, or mend adapters.stores")
ANSWER_WAIT_S = 10.0
MOST_SKEW_S = 5.0
"""Largest difference from the control plane's clock: leases and the ends of months need the same time."""
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
"""Older than any release: a clock before it was never set."""
NOT_SYNCHRONISED = 5
"""Return value TIME_ERROR of adjtimex(2)."""
SYNCHRONISE = "let a service such as systemd-timesyncd or chrony keep the clock (`timedatectl set-ntp true`)"


def check_clock(config: "Config", clock: Clock | None = None, *, is_synchronised: bool | None = None) -> Finding:
    """Compare the clock with the control plane's, and read whether the kernel's clock is synchronised.

    Args:  is_synchronised  None: as the kernel says
    """
    now = datetime.fromtimestamp((clock or SystemClock()).wall_s(), UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < EARLIEST:
        return failed("clock", f"{shown} is before any release", SYNCHRONISE)
    if config.control.url and (theirs := _time_at(config.control.url)) is not None:
        skew_s = abs((now - theirs).total_seconds())
        if skew_s > MOST_SKEW_S:
            return failed("clock", f"{shown} is {skew_s:.0f} s off the control plane's {theirs:%H:%M:%S}", SYNCHRONISE)
    if not (_is_kernel_synchronised() if is_synchronised is None else is_synchronised):
        return warning("clock", f"{shown}; the kernel says that no service keeps it", SYNCHRONISE)
    return ok("clock", shown)


def check_port(config: "Config", *, alone: bool) -> Finding:
    """Listen on the server's port for a moment; on the control plane's, where it runs alone."""
    from manylora.errors import ConfigInvalid
    from manylora.http.listener import listen

    group = "control" if alone else "server"
    host, port = (config.control.host, config.control.port) if alone else (config.server.host, config.server.port)
    try:
        listen(host, port, group=group).close()
    except ConfigInvalid as error:
        return failed("port", error.message, f"stop the other program, or choose others: {group}.host, {group}.port")
    return ok("port", f"{host}:{port} is free")


def check_database(config: "Config") -> Finding:
    """Connect to the database and read its revision; with `control.url` ask that control plane in its place."""
    from manylora.config.folders import control_dir
    from manylora.errors import ManyloraError

    if config.control.url:
        return _check_control(config.control.url)
    from manylora.control.storage.database import database_url, place_of, require_known_revision

    try:
        url = database_url(config.control.database_url, control_dir(config))
        place = place_of(url)
        if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
            return ok("database", f"{place}: the first start makes it")
        require_known_revision(url, place)
    except ManyloraError as error:
        return failed(
            "database", error.message, "start it, or mend control.database_url; docs/upgrading.md has the versions"
        )
    return ok("database", f"{place} answers, and this release knows its tables")


def check_stores(config: "Config") -> Finding:
    """Ask each place of `adapters.stores` for its first file, with the credentials of the environment."""
    if not config.adapters.stores:
        return ok("store", "adapters.stores is empty: no object storage is used")
    for place in config.adapters.stores:
        if (why := asyncio.run(_store_failure(place))) is not None:
            return failed("store", f"{place}: {why[0]}", why[1])
    return ok("store", f"{', '.join(config.adapters.stores)}: answers, and the credentials may read it")


async def _store_failure(place: str) -> tuple[str, str] | None:
    """Return the failure of a place and its remedy; None if it answers."""
    from manylora.adapters.sources.download import FileReplaced, StoreDenies, StoreRefused
    from manylora.adapters.sources.object_storage import ObjectSource

    try:
        async with asyncio.timeout(ANSWER_WAIT_S):
            await ObjectSource([place]).probe(place)
    except StoreDenies:
        return DENIED
    except FileReplaced:
        return NO_BUCKET
    except TimeoutError:
        return f"no answer within {ANSWER_WAIT_S:g} s", "see that this machine reaches it (AWS_ENDPOINT_URL, a proxy)"
    except (OSError, StoreRefused) as error:
        if "403 Forbidden" in str(error):
            return DENIED
        if "404 Not Found" in str(error):  # SeaweedFS and others, whose replies have no code of their own
            return NO_BUCKET
        return str(error).splitlines()[0], "see that this machine reaches it (AWS_ENDPOINT_URL, AWS_REGION, a proxy)"
    return None


def _check_control(url: str) -> Finding:
    answer = _answer(url)
    if answer is None or not answer.is_success:
        found = f"the control plane at {url} " + ("does not answer" if answer is None else f"says {answer.status_code}")
        return failed("database", found, "start `manylora control`, or mend control.url")
    return ok("database", f"the control plane at {url} answers")


def _time_at(url: str) -> datetime | None:
    """Return the time of a server by its header `Date`, to a second; None if there is none."""
    answer = _answer(url)
    try:
        return None if answer is None else parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return None


def _answer(url: str) -> "httpx2.Response | None":
    import httpx2

    try:
        return httpx2.get(f"{url.rstrip('/')}/health", timeout=ANSWER_WAIT_S, trust_env=False)
    except httpx2.HTTPError:
        return None


def _is_kernel_synchronised() -> bool:
    """Return whether the kernel's clock is synchronised, as adjtimex(2) says; true where the call does not exist."""
    state = ctypes.create_string_buffer(256)  # `struct timex` with `modes` 0: a question
    try:
        return int(ctypes.CDLL(None, use_errno=True).adjtimex(state)) != NOT_SYNCHRONISED
    except AttributeError:
        return True
