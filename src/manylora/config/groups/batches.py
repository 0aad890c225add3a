"""Settings of batches."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesConfig:
    """The bounds of batches; `engine.batch_step_tokens` bounds their part of a step."""

    lines_at_once: int = setting(
        16,
        low=1,
        text="""
        Largest number of lines of all batches under way at one time.
        """,
    )
    max_lines: int = setting(
        50_000,
        low=1,
        text="""
        Largest number of lines of one batch.
        """,
    )
    tenant_batches: int = setting(
        200,
        low=1,
        text="""
        Largest number of batches that a tenant has at one time, ended ones included until their retention is over
        (`storage.retention_s`).
        """,
    )
    lease_s: float = setting(
        30.0,
        low=1,
        text="""
        Seconds for which one server alone runs a batch. The server renews the lease; after its death another one goes
        on with the batch once the lease has ended.
        """,
    )
    check_s: float = setting(
        5.0,
        low=0.01,
        text="""
        Seconds between two looks for batches whose window has passed, and for files and batches to delete.
        """,
    )
