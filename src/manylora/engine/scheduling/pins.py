"""The tie of a sequence to a place on the device: its adapter's pinned version, and the prefix root that follows."""

from manylora.engine.activation import active_from
from manylora.engine.adapter_port import AdapterStore
from manylora.engine.scheduling.blocks import prefix_root
from manylora.engine.scheduling.lending import KvLender
from manylora.engine.scheduling.sequence import Sequence
from manylora.errors import AdapterTextChanged, InvalidParameter, ManyloraError


class AdapterPins:
    """The scheduler's `AdapterGate` over the real store: pins a version and fixes the prefix root with it.

    Two kinds of sequences become faults instead of pins: those with a token that their version does not know, and those
    whose prompt was made with another text than the version's.
    vocab  the base's; a version may know more tokens
    """

    def __init__(self, store: AdapterStore, lender: KvLender | None = None, *, vocab: int | None = None) -> None:
        self._store = store
        self._lender = lender
        self._vocab = vocab
        self._faults: list[tuple[Sequence, ManyloraError]] = []

    def pin(self, sequence: Sequence) -> bool:
        request = sequence.request
        if request.adapter is None:
            sequence.root = prefix_root("", request.salt)
            return True
        if sequence.placed is not None:
            return True
        placed = self._store.pin(request.adapter)
        if placed is None:
            return False
        known = placed.vocabulary or self._vocab
        if known is not None and max(request.tokens) >= known:
            self._store.unpin(placed, was_used=False)
            self._faults.append((sequence, unknown_tokens(known)))
            return False
        if self._store.text_digest(request.adapter) != request.text:
            self._store.unpin(placed, was_used=False)
            self._faults.append(
                (sequence, AdapterTextChanged(f"Adapter '{request.adapter.id}' has just been replaced"))
            )
            return False
        sequence.placed = placed
        sequence.root = prefix_root(placed.digest, request.salt)
        if placed.invocation_tokens:
            sequence.active_from = active_from(request.tokens, placed.invocation_tokens)
            sequence.own_root, sequence.root = sequence.root, prefix_root("", request.salt)
        return True

    def unpin(self, sequence: Sequence) -> None:
        if sequence.placed is not None:
            self._store.unpin(sequence.placed, was_used=sequence.first_run_s is not None)
        sequence.forget_version()

    def take_faults(self) -> list[tuple[Sequence, ManyloraError]]:
        """Return the faults since the last call: sequences that their version cannot serve, with the errors."""
        faults, self._faults = self._faults, []
        return faults

    def reclaim(self, blocks: int) -> bool:
        return self._lender is not None and self._lender.take_back(blocks, self._store.give_back)


def unknown_tokens(vocab: int) -> InvalidParameter:
    """Return the error for a token id outside a vocabulary, the base's or an adapter version's."""
    return InvalidParameter(f"token ids must be >= 0 and < {vocab}", parameter="prompt")
