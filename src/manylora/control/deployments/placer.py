"""The Protocol of placers: what runs the replicas of dedicated deployments, and what the control plane asks of it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from manylora.control.deployments.replicas import Sight

if TYPE_CHECKING:
    from manylora.control.control import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a deployment that its replicas follow.

    base           name of its base model
    max_model_len  positions of a sequence; 0: the window of the base
    quantize       a value of `model.quantize`; empty: that of the control plane's settings
    """

    base: str
    max_model_len: int = 0
    quantize: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """One start of a replica.

    id          of the start, unique for ever
    place       name of the folder that starts of one slot share: journals of a killed replica are read by the next
    """

    id: str
    place: str
    tenant: str
    name: str
    options: Options


class Placer(Protocol):
    """Runs replicas. It belongs to one event loop, and each method returns in a few seconds.

    id  of the placer, which outlives the control plane's process: after a restart it knows its replicas
    """

    id: str

    def needed_bytes(self, options: Options) -> int:
        """Return the memory of one replica; a thread may call it, since it reads files of the base.

        Raises `InvalidParameter` with the numbers for one that cannot start.
        """

    def total_bytes(self) -> int:
        """Return the memory of all replicas together."""

    async def start(self, order: StartOrder) -> str:
        """Start a replica, and return its URL before it is ready. Raises `OSError`, `ManyloraError`."""

    async def sight(self, order_id: str, url: str) -> tuple[Sight, str]:
        """Return the state of a replica's process and, of one that is gone, its last words."""

    async def drain(self, order_id: str) -> None:
        """Tell a replica to finish its requests and end. One that is gone is no error."""

    async def kill(self, order_id: str) -> None:
        """End a replica and its child processes at once. One that is gone is no error."""

    async def sweep(self, known: Collection[str]) -> int:
        """Kill the replicas of this placer that are not in `known`, and return their number."""

    async def close(self) -> None:
        """Give up what it holds beside its replicas, which run on."""


MakePlacer = Callable[["Control", str], Placer]
"""Makes the placer of a control plane. The second argument is the URL at which replicas reach the control plane."""
