"""Deletion on three real engines: no byte of the adapter is left in any tier of any machine."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.bench.faults.swaps import contents
from manylora.bench.faults.tiny_base import VOCAB, tiny_engine, write_tiny_base
from manylora.engine.engine import Engine
from manylora.errors import AdapterNotFound
from manylora.fleet.host.host import EngineHost
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.served_model import ServedModel
from tests.fleet.fleet_house import fleet_config, fleet_house, until
from tests.support.waiting import PATIENCE_S

REF = AdapterRef(SourceName.LOCAL, "doomed")
HOSTS = 3


def served(base: Path) -> ServedModel:
    return ServedModel(
        model_id="tiny",
        base_dir=str(base),
        sha="ab" * 32,
        dtype="float32",
        device="cpu",
        max_model_len=128,
        vocab_size=VOCAB,
    )


def files_of(folder: Path, digest: str) -> list[Path]:
    """The files of a machine with the image of an adapter, by its digest."""
    return [path for path in folder.rglob("*") if path.is_file() and digest[:16] in path.name]


async def on_every_engine(edge: EngineClient, holds: AdapterState) -> AdapterInfo:
    async with asyncio.timeout(PATIENCE_S):
        while (info := await edge.info(REF)).state is not holds:  # noqa: ASYNC110  what is awaited are processes
            await asyncio.sleep(0.02)
    return info


@pytest.mark.long  # three engines with the processes of their ingest
def test_a_deleted_adapter_leaves_no_byte_on_any_engine(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    files = contents()[0]

    def built(number: int) -> tuple[Engine, ServedModel]:
        return tiny_engine(base, tmp_path / f"machine-{number}", tmp_path / "roots"), served(base)

    async def main() -> None:
        (tmp_path / "roots" / "doomed").mkdir(parents=True)
        (tmp_path / "roots" / "doomed" / "adapter_config.json").write_bytes(files.config)
        (tmp_path / "roots" / "doomed" / "adapter_model.safetensors").write_bytes(files.weights)
        async with fleet_house(tmp_path) as house:
            addresses = []
            for number in range(HOSTS):
                config = fleet_config(tmp_path, fleet__counts_dir=str(tmp_path / f"counts-{number}"))
                host = EngineHost(config, InProcessTransport(partial(built, number)))
                await host.start()
                house.stack.push_async_callback(host.close)
                addresses.append(host.address)
            edge = await house.edge(addresses)
            machines = [tmp_path / f"machine-{number}" for number in range(HOSTS)]
            await edge.manage(AdapterAction.PIN, REF)
            info = await on_every_engine(edge, AdapterState.ON_DEVICE)
            await until(lambda: all(files_of(machine, info.digest) for machine in machines))
            await edge.manage(AdapterAction.DELETE, REF)
            await until(lambda: not any(files_of(machine, info.digest) for machine in machines))
            with pytest.raises(AdapterNotFound):
                await edge.info(REF)
            async with asyncio.timeout(PATIENCE_S):
                while (
                    stats := await edge.stats()
                ) is None or stats.adapters.on_device + stats.adapters.disk_bytes_used:
                    pass  # the numbers of each engine are a second old at most

    asyncio.run(main())
