"""Settings of the metering."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringConfig:
    """The records of usage, until the ledger has them."""

    dir: str = setting(
        "",
        text="""
        Folder of usage records until the ledger has them. Empty: `metering` in the cache folder. Servers of one machine
        may share it: each has a folder of its own in it, and takes over the folders of servers that are gone.
        """,
    )
    keep_journals: bool = setting(
        False,
        text="""
        Whether the journals and the usage records stay after the ledger has them, for audits. They grow without bound,
        and each start reads them again.
        """,
    )
    ship_s: float = setting(
        1.0,
        low=0.01,
        text="""
        Seconds between two shipments of records to the control plane.
        """,
    )
    durable_wait_s: float = setting(
        10.0,
        low=0.01,
        text="""
        Seconds that the end of a reply waits for its usage record to be on the disk. Then the reply ends, the log has a
        line, and the record is tried on.
        """,
    )
