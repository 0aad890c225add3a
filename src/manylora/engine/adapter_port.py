"""The part of the adapter store that the engine uses. `adapters/store/store.py` implements it."""

from collections.abc import Sequence
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterInfo, AdapterWords
from manylora.adapter_state import AdapterState as AdapterState
from manylora.adapter_state import StoreStats as StoreStats
from manylora.errors import ManyloraError
from manylora.ids import Flow


class AdapterStore(Protocol):
    """The life of adapters, polled by the engine. No method blocks, sleeps or reads a file's content.

    Each step the engine calls `want` for every waiting request that names an adapter, then `poll` once, then `pin`
    until `pin` returns a place or `failure` an error; `unpin` once for every successful `pin`. `unwant` withdraws a
    wish once no request waits for the adapter; a wish that is not repeated between two polls ends, too. A load under
    way may still go on. While no request is under way it calls `poll` now and then, and soon again while `is_busy`.
    """

    def want(self, ref: AdapterRef, flow: Flow | None = None) -> AdapterState:
        """Ask for an adapter; idempotent. Returns its state now, from which the tier on arrival is read.

        `flow` is the owner of a new request: a flow over its share of the device evicts its own adapters first.
        """

    def lacks_room(self, ref: AdapterRef) -> bool:
        """Return whether the adapter is packed, and only adapters in use keep it off the device."""

    def joint_failure(self, refs: Sequence[AdapterRef]) -> ManyloraError | None:
        """Return the error of adapters that can never be on the device together; None if they can, as far as known."""

    def unwant(self, ref: AdapterRef) -> None:
        """Withdraw the wish, since no request waits for the adapter. The next wish is a new one."""

    def poll(self) -> None:
        """Take over what the loaders have finished, and start what may start; called once a step."""

    def pin(self, ref: AdapterRef) -> AdapterHandle | None:
        """Hold the adapter's current version on the device and return its handle, or None if it is not there."""

    def unpin(self, placed: AdapterHandle, *, was_used: bool = True) -> None:
        """Give back one pin; one that nothing ran with does not count as a use when room must be made."""

    def suspect(self, placed: AdapterHandle) -> None:
        """Note that a request that ran with this version came to logits that are not finite."""

    def text(self, ref: AdapterRef) -> AdapterWords | None:
        """Return the text facts of the adapter's current version with their path; None until they are known."""

    def text_digest(self, ref: AdapterRef) -> str:
        """Return the digest of the current version's text facts; empty if it has none."""

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        """Return the error that ended the adapter's last load, until its retry time; None: there is none."""

    def begun(self) -> list[tuple[AdapterRef, int]]:
        """Return the loads that the last `poll` began for requests, with their bytes, to charge the waiting flows."""

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle adapters until `num_bytes` of the memory lent by the KV cache are free, and give them back.

        Return False, with nothing evicted, if pinned adapters leave too little.
        """

    @property
    def is_busy(self) -> bool:
        """Return whether a loader is at work, so that the next `poll` should come soon even if no request waits."""

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an operator's act on an adapter. Raises a `ManyloraError` if it is impossible."""

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """Return the state of one adapter for an operator. Raises: AdapterNotFound."""

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Return the state of every known adapter for an operator."""

    def stats(self) -> StoreStats:
        """Return the store's gauges and totals."""

    def close(self) -> None:
        """Stop every loader."""
