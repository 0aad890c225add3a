"""The placer on the control plane's own machine: each replica is a `manylora serve` in a process of its own.

A replica's command line names its settings' file, `<control.dir>/placements/<slot>/<order>.toml`. So a control plane
that starts again finds its replicas among the processes of the machine by that name alone: no number of a process is
stored, and a number that is used again does no harm.
"""

import asyncio
import dataclasses
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import httpx2

from manylora.config.declaration import Setting
from manylora.config.environment import child_environment
from manylora.config.folders import cache_dir
from manylora.config.settings import Config, leaves
from manylora.control.bases import is_same_base
from manylora.control.control import Control
from manylora.control.deployments.placer import Options, StartOrder
from manylora.control.deployments.replicas import Sight
from manylora.errors import InvalidParameter, ManyloraError
from manylora.models.fetch.catalog import describe
from manylora.server.metering.sent_mark import is_all_sent
from manylora.system.byte_sizes import byte_text
from manylora.system.printable import printable
from manylora.system.private_files import make_private
from manylora.system.resources import machine_bytes
from manylora.wiring.memory_plan import base_sizes, divide_memory
from manylora.wiring.placer.processes import Process, orders_below, process_of
from manylora.wiring.placer.replica_log import cut_log, last_line, open_log
from manylora.wiring.planning import planned_form, refuse_unfit_files

log = logging.getLogger(__name__)

HEALTH_WAIT_S = 5.0
ID_FILE, METERING = "placer", "metering"
LAST_WORDS = 300
"""Letters of the last line of a replica's output in the reason of its end."""
GROUPS = ("model", "engine", "adapters", "server", "control", "metering", "storage", "batches")
"""Groups of settings that a replica has from its control plane."""
OWN = frozenset(
    {"model.base", "model.more_bases", "model.memory_share_of", "model.quantize_of", "model.max_model_len_of"}
    | {"model.tensor_parallel_of", "model.cache_dir", "server.host", "server.port", "server.public_url"}
    | {"control.host", "control.port", "control.dir", "control.database_url", "control.url", "control.edge_token"}
    | {"control.deployment", "control.free_bases", "metering.dir", "storage.dir", "adapters.pushed_dir"}
    | {"adapters.registry_dir", "engine.memory_bytes", "server.auth"}
)
"""Settings that a replica does not have from its control plane."""


class LocalPlacer:
    """Runs replicas as processes of this machine. See `control.deployments.placer.Placer`."""

    def __init__(self, control: Control, url: str) -> None:
        """Args: url  address at which replicas reach the control plane."""
        self._control = control
        self._config = control.config
        self._url = url
        self._root = (control.folder / "placements").resolve()
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.id = _id_in(self._root)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._adopted: dict[str, Process] = {}  # order → its process, of an earlier control plane
        self._places: dict[str, Path] = {}  # order → its folder
        # A context of TLS takes tens of milliseconds, and no replica has a certificate.
        self._client = httpx2.AsyncClient(timeout=HEALTH_WAIT_S, trust_env=False, verify=False)

    # ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────

    def needed_bytes(self, options: Options) -> int:
        return self._config.placement.replica_bytes or self._planned_bytes(options)

    def total_bytes(self) -> int:
        return self._config.placement.memory_bytes or machine_bytes()

    def _planned_bytes(self, options: Options) -> int:
        """Return the sum of the memory plan of a replica, from the files of its base as they are now.

        Raises `InvalidParameter` for one that cannot start.
        """
        try:
            config = self._settings(options)
            facts = describe(config.model.base, cache_dir(config))
            if facts.directory is not None:
                refuse_unfit_files(facts.directory, facts.spec)
            sizes = base_sizes(config, facts.spec, planned_form(config, facts.spec, facts.directory))
        except ManyloraError as error:
            raise InvalidParameter(f"{options.base}: {error.message}", parameter="config.baseModel") from error
        total = self.total_bytes()
        plan = divide_memory(config, sizes, available_bytes=total)
        if (why := plan.objection()) is not None:
            raise InvalidParameter(
                f"{options.base} in {byte_text(total)} for all replicas: {why}", parameter="config.baseModel"
            )
        return sum(plan.parts.values())

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, order: StartOrder) -> str:
        return await asyncio.to_thread(self._start, order)

    def _start(self, order: StartOrder) -> str:
        folder = self._root / order.place
        folder.mkdir(mode=0o700, exist_ok=True)
        host, port = self._config.placement.host, _free_port(self._config.placement.host)
        file = folder / f"{order.id}.toml"
        values = self._values(order, folder, host, port)
        make_private(file)  # it has the token of edges
        file.write_text(_toml(values), encoding="utf-8")
        environment = {name: text for name, text in child_environment().items() if not name.startswith("MANYLORA_")}
        with open_log(folder) as output:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "manylora", "serve", "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the control plane's terminal is not the replica's
            )
        self._children[order.id], self._places[order.id] = child, folder
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}"

    async def sight(self, order_id: str, url: str) -> tuple[Sight, str]:
        if await asyncio.to_thread(self._running, order_id) is None:
            return Sight.GONE, await asyncio.to_thread(self._last_words, order_id)
        return (Sight.WELL if url and await self._is_well(url) else Sight.SILENT), ""

    async def _is_well(self, url: str) -> bool:
        """Return whether a replica serves: its model is loaded, and its engine answers."""
        try:
            return (await self._client.get(f"{url}/health")).is_success
        except httpx2.HTTPError:
            return False

    async def drain(self, order_id: str) -> None:
        await asyncio.to_thread(self._signal, order_id, signal.SIGTERM)

    async def kill(self, order_id: str) -> None:
        await asyncio.to_thread(self._signal, order_id, signal.SIGKILL)

    async def sweep(self, known: Collection[str]) -> int:
        strays = [each for each in await asyncio.to_thread(orders_below, self._root) if each not in known]
        for order_id in strays:
            await self.kill(order_id)
        return len(strays)

    async def close(self) -> None:
        await self._client.aclose()

    def _running(self, order_id: str) -> Process | None:
        """Return a replica's process, whose log it keeps small; None: it does not run."""
        process = self._process_of(order_id)
        if process is not None and (folder := self._place_of(order_id)) is not None:
            cut_log(folder)
        return process

    def _process_of(self, order_id: str) -> Process | None:
        """Return a replica's process, of this control plane or of the one before it; None: it does not run."""
        child = self._children.get(order_id)
        if child is not None:
            running = None if child.poll() is not None else process_of(child.pid)
            if running is None:  # it may have ended after `poll`, which then has no exit code yet
                child.wait()
            return running
        known = self._adopted.get(order_id)
        if known is None or not known.runs:
            known = orders_below(self._root).get(order_id)
            self._adopted.pop(order_id, None)
            if known is not None:
                self._adopted[order_id] = known
        return known

    def _signal(self, order_id: str, number: signal.Signals) -> None:
        process = self._process_of(order_id)
        if process is not None:  # a kill ends the engine's process and those of its loads, too
            process.send(number, to_group=number is signal.SIGKILL)

    def _last_words(self, order_id: str) -> str:
        """Return how a replica ended, with the last line of its output, and remove what it leaves behind."""
        child, folder = self._children.pop(order_id, None), self._place_of(order_id)
        self._places.pop(order_id, None)
        code = None if child is None else child.returncode
        ending = "its process is gone" if code is None else f"its process ended with {_status(code)}"
        if folder is None:
            return ending
        last = last_line(folder)
        (folder / f"{order_id}.toml").unlink(missing_ok=True)
        metering = folder / METERING
        if (code == 0 or (code is None and metering.exists())) and is_all_sent(metering):
            shutil.rmtree(folder, ignore_errors=True)
        elif code == 0:
            log.warning("replica.usage_left folder=%s: the next start of its slot sends it", folder)
        return f"{ending}: {printable(last[:LAST_WORDS])}" if last and code else ending

    def _place_of(self, order_id: str) -> Path | None:
        """Return a replica's folder; None: it is gone."""
        if order_id not in self._places:
            found = next((file.parent for file in self._root.glob(f"*/{order_id}.toml")), None)
            if found is None:
                return None
            self._places[order_id] = found
        return self._places[order_id]

    # ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _settings(self, options: Options) -> Config:
        """Return the settings that a replica's memory plan reads."""
        own = self._config
        model = dataclasses.replace(
            own.model,
            base=self._base(options.base),
            more_bases=(),
            quantize=options.quantize or own.model.quantize,
        )
        engine = dataclasses.replace(
            own.engine, max_model_len=options.max_model_len or own.engine.max_model_len, memory_bytes=0
        )
        return dataclasses.replace(own, model=model, engine=engine)

    def _base(self, name: str) -> str:
        """Return a base as the settings give it, which may be a folder; else its own name."""
        model = self._config.model
        return next((given for given in (model.base, *model.more_bases) if is_same_base(given, name)), name)

    def _values(self, order: StartOrder, folder: Path, host: str, port: int) -> dict[str, Setting]:
        """Return the settings of a replica that differ from the defaults."""
        usual, own = leaves(Config()), leaves(self._config)
        kept = {name: value for name, value in own.items() if value != usual[name] and name not in OWN}
        kept = {name: value for name, value in kept.items() if name.partition(".")[0] in GROUPS}
        settings = self._settings(order.options)
        return kept | {
            "model.base": settings.model.base,
            "model.quantize": settings.model.quantize,
            "model.cache_dir": str(cache_dir(self._config).resolve()),
            "engine.max_model_len": settings.engine.max_model_len,
            "engine.memory_bytes": self.needed_bytes(order.options),
            "adapters.registry_dir": str(self._control.registry_dir.resolve()),
            "server.host": host,
            "server.port": port,
            "server.auth": "on" if self._control.is_key_needed else "off",
            "control.url": self._url,
            "control.edge_token": self._control.edge_token,
            "control.deployment": f"{order.tenant}/{order.name}",
            "control.free_bases": (*self._config.control.free_bases, order.options.base),
            "metering.dir": str(folder / METERING),
            "storage.dir": str(folder / "storage"),
            "placement.orphan_s": self._config.placement.orphan_s,
        }


def _id_in(folder: Path) -> str:
    """Return the id of the placer that a folder belongs to; a new folder gets one."""
    file = folder / ID_FILE
    if not file.exists():
        own = file.with_name(f".{ID_FILE}-{os.getpid()}")
        own.write_text(secrets.token_hex(16))
        own.replace(file)
    return file.read_text().strip()


def _free_port(host: str) -> int:
    """Return a port that is free now. A replica that finds it taken ends, and the next start takes another."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        return int(taken.getsockname()[1])


def _toml(values: dict[str, Setting]) -> str:
    """Return settings as a file: JSON's texts, numbers, booleans and lists of texts are TOML's, too."""
    groups: dict[str, list[str]] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        written = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        groups.setdefault(group, []).append(f"{name} = {written}")
    return "\n".join(line for group, lines in groups.items() for line in (f"[{group}]", *lines, ""))


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def place_locally(control: Control, url: str) -> LocalPlacer:
    """Return the placer of a control plane whose replicas reach it at `url`."""
    return LocalPlacer(control, url)
