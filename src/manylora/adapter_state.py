"""Where an adapter's weights are, and what the store holds: words the engine and the adapter store share."""

from dataclasses import dataclass
from enum import StrEnum


class AdapterState(StrEnum):
    """Where an adapter's weights are: the states of the store's machine."""

    ABSENT = "absent"
    FETCHING = "fetching"
    ON_DISK = "on_disk"
    IN_HOST = "in_host"
    ON_DEVICE = "on_device"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Gauges and totals of the store; bytes are true bytes of packed images.

    On a CPU host memory and device are one tier: images there are counted in `bank_bytes_used` and `on_device` only.
    """

    bank_bytes_total: int
    bank_bytes_used: int
    host_bytes_used: int
    disk_bytes_used: int
    on_device: int
    in_host: int
    on_disk: int
    loads: int
    failures: int
    evictions: int
