"""Settings of what a server keeps for its tenants."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """The files of tenants (the input of batches and their results), and the responses that others continue.

    The limits of the control plane count, over all its servers.
    """

    dir: str = setting(
        "",
        text="""
        Folder of the control plane for the bytes of files and responses, and of each server for the inputs of batches
        under way. Empty: `storage` in the control plane's folder (`control.dir`). Servers of one control plane on one
        machine may share it: each has a folder of its own in it, and a server takes the first free one. Control planes
        of one database and pepper must share it. One with another pepper has blobs of its own in it; give a control
        plane that was restored beside the first another folder.
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
    responses_s: float = setting(
        3_600.0,
        low=1,
        text="""
        Seconds for which a response of `/v1/responses` is kept, so that another one can continue it.
        """,
    )
    tenant_responses: int = setting(
        1_000,
        low=1,
        text="""
        Largest number of responses of a tenant; beyond it the oldest are deleted, but none that runs in the background.
        """,
    )
    tenant_response_bytes: int = setting(
        50_000_000,
        low=1,
        text="""
        Bytes of all responses of a tenant together, with the conversations that they continue; beyond them the oldest
        are deleted, but none that runs in the background. A larger response is not kept; with
        `background`, one whose longest reply may make it larger is refused with 403, and with 429 while others that
        run hold the room.
        """,
    )
