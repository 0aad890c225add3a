"""The adapter store of a server, from its settings."""

import secrets
from pathlib import Path

from manylora.adapters.banks.bank import Bank
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.jobs import IngestSettings
from manylora.adapters.sources.upload_folders import folder_sources
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier, ingest_rules
from manylora.adapters.tiers.reader_threads import ThreadedReader
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.config.settings import enabled_sources


def open_store(
    *,
    config: AdaptersConfig,
    shape: BaseShape,
    base_dir: Path | None = None,
    dtype: str,
    bank: Bank | None = None,
    folder: Path,
    clock: Clock,
    registry_token: str = "",
) -> Store:
    """Return the store of a server: the configured sources, an ingest process, the disk tier below `folder`.

    `dtype` is the name of the back end's `lora_dtype`; `config.bank_bytes` is the memory plan's. `bank`
    keeps what the kernels read; None: the bank of a CPU. `registry_token` opens the uploads at `config.registry_url`.
    """
    disk = DiskTier(
        folder, config.disk_bytes, dtype=dtype, base_fingerprint=shape.fingerprint, rules=ingest_rules(config)
    )
    settings = IngestSettings(
        shape=shape,
        roots=config.roots,
        folder=str(disk.folder),
        dtype=dtype,
        max_rank=config.max_rank,
        max_bytes=config.max_bytes,
        parallel_loads=config.parallel_loads,
        stores=config.stores,
        hub_endpoint=config.hub_endpoint,
        redirect_hosts=config.redirect_hosts,
        load_timeout_s=config.load_timeout_s,
        base_dir="" if base_dir is None else str(base_dir),
        registry_dir=config.registry_dir,
        registry_url=config.registry_url,
        registry_token=registry_token,
        pushed_dir=config.pushed_dir,
        memory_bytes=config.ingest_bytes,
        session=secrets.token_hex(8),
        is_strict=config.strict,
        harmless_fields=config.harmless_fields,
        allows_templates=config.chat_templates,
    )
    folders = folder_sources(config.roots, config.registry_dir, config.pushed_dir)
    return Store(
        shape=shape,
        dtype=dtype,
        sources=folders,
        remote=enabled_sources(config) - folders.keys(),
        ingest=ProcessIngest(settings),
        reader=ThreadedReader(),
        disk=disk,
        bank=CpuBank(config.bank_bytes) if bank is None else bank,
        clock=clock,
        config=config,
    )
