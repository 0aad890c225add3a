"""Settings of what a server keeps for its tenants."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """The files of tenants: the input of batches and their results."""

    dir: str = setting(
        "",
        text="""
        Folder of files and batches. Empty: `storage` in the control plane's folder (`control.dir`). Servers of one
        machine may share it: each has a folder of its own in it, and one that starts again takes the first free one.
        """,
    )
    max_file_bytes: int = setting(
        100_000_000,
        low=1,
        text="""
        Largest size of an uploaded file.
        """,
    )
    tenant_files: int = setting(
        1_000,
        low=1,
        text="""
        Largest number of files of a tenant, results of batches included.
        """,
    )
    tenant_bytes: int = setting(
        1_000_000_000,
        low=1,
        text="""
        Bytes of all files of a tenant together, results of batches included. At this bound an upload gets 403
        `storage_limit_exceeded`, and a batch begins no further line and fails with the results that it has.
        """,
    )
    retention_s: float = setting(
        2_592_000.0,
        low=1,
        text="""
        Seconds after which a file, or a batch that has ended, is deleted: 30 days.
        """,
    )
