"""The tie of a sequence to a place on the device: its adapter's pinned version, and the prefix root that follows."""

import hashlib

from manylora.adapter_ref import AdapterRef, Mix
from manylora.adapter_state import AdapterHandle, HeadKind
from manylora.engine.activation import active_from
from manylora.engine.adapter_port import AdapterStore
from manylora.engine.pooling import Pooling
from manylora.engine.request import Request
from manylora.engine.scheduling.blocks import prefix_root
from manylora.engine.scheduling.lending import KvLender
from manylora.engine.scheduling.sequence import Sequence
from manylora.errors import AdapterTextChanged, InvalidParameter, ManyloraError, TaskUnsupported
from manylora.ids import Digest, RequestId


class AdapterPins:
    """The scheduler's `AdapterGate` over the real store: pins a version and fixes the prefix root with it.

    Four kinds of sequences become faults instead of pins: those with a token that their version does not know, those
    whose prompt was made with another text than the version's, those of a mix with a version that cannot be in one, and
    those that ask for what their version does not give.
    The members of a mix are pinned together or not at all, so that no sequence holds room while it waits for more.
    vocab  the base's; a version may know more tokens
    """

    def __init__(self, store: AdapterStore, lender: KvLender | None = None, *, vocab: int | None = None) -> None:
        self._store = store
        self._lender = lender
        self._vocab = vocab
        self._faults: dict[RequestId, tuple[Sequence, ManyloraError]] = {}  # a plan may ask for a pin several times

    def pin(self, sequence: Sequence) -> bool:
        request = sequence.request
        if request.adapter is None:
            sequence.root = prefix_root("", request.salt)
            return True
        if sequence.placed is not None:
            return True
        placed = self._pinned(request.adapter)
        if placed is None:
            return False
        if (fault := self._fault(sequence, placed)) is not None:
            self._give_back(placed, was_used=False)
            self._faults[request.id] = sequence, fault
            return False
        sequence.placed = placed
        sequence.root = prefix_root(placed.digest, request.salt)
        if placed.invocation_tokens:
            sequence.active_from = active_from(request.tokens, placed.invocation_tokens)
            sequence.own_root, sequence.root = sequence.root, prefix_root("", request.salt)
        return True

    def unpin(self, sequence: Sequence) -> None:
        if sequence.placed is not None:
            self._give_back(sequence.placed, was_used=sequence.first_run_s is not None)
        sequence.forget_version()

    def _pinned(self, ref: AdapterRef) -> AdapterHandle | None:
        """Pin an adapter, or all members of a mix; return None if one of them is not on the device."""
        if ref.mix is None:
            return self._store.pin(ref)
        pinned: list[AdapterHandle] = []
        for member in ref.mix.members:
            placed = self._store.pin(member)
            if placed is None:
                for other in pinned:
                    self._store.unpin(other, was_used=False)
                return None
            pinned.append(placed)
        return _mixed(ref, ref.mix, pinned)

    def _give_back(self, placed: AdapterHandle, *, was_used: bool) -> None:
        for part, _ in placed.weighted:
            self._store.unpin(part, was_used=was_used)

    def _fault(self, sequence: Sequence, placed: AdapterHandle) -> ManyloraError | None:
        """Return the reason for which a sequence cannot run with this version, or None."""
        request = sequence.request
        for part, _ in placed.parts:
            if (why := _why_alone(part)) is not None:
                return InvalidParameter(
                    f"`adapters`: adapter '{part.ref.id}' {why}, so it cannot be applied together with others; name it "
                    "alone, as `adapter_id`",
                    parameter="adapters",
                )
        known = placed.vocabulary or self._vocab
        if known is not None and max(request.tokens) >= known:
            return unknown_tokens(known)
        for part, _ in placed.weighted:
            if self._store.text_digest(part.ref) != request.text:
                return AdapterTextChanged(f"Adapter '{part.ref.id}' has just been replaced")
        return _task_fault(request, placed)

    def take_faults(self) -> list[tuple[Sequence, ManyloraError]]:
        """Return the faults since the last call: sequences that their version cannot serve, with the errors."""
        faults, self._faults = self._faults, {}
        return list(faults.values())

    def reclaim(self, blocks: int) -> bool:
        return self._lender is not None and self._lender.take_back(blocks, self._store.give_back)


def _mixed(ref: AdapterRef, mix: Mix, pinned: list[AdapterHandle]) -> AdapterHandle:
    """Return the handle of a mix. Its digest names the ordered versions with their weights, so its prefixes do, too."""
    names = ",".join(f"{part.digest}*{weight!r}" for part, weight in zip(pinned, mix.weights, strict=True))
    return AdapterHandle(
        ref=ref,
        digest=Digest(hashlib.sha256(f"mix:{names}".encode()).hexdigest()),
        num_bytes=sum(part.num_bytes for part in pinned),
        rank=sum(part.rank for part in pinned),
        parts=tuple(zip(pinned, mix.weights, strict=True)),
    )


def _why_alone(placed: AdapterHandle) -> str | None:
    """Return the reason for which a version applies to rows by itself only; None: it is linear in its weight."""
    if placed.head is not None:
        return "has a classification head"
    if placed.invocation_tokens:
        return "is an activated LoRA, which applies from its invocation tokens on"
    if placed.has_extras:
        return "changes more than the projections of a block (DoRA, biases, norms, embedding, head or added tokens)"
    return None


def unknown_tokens(vocab: int) -> InvalidParameter:
    """Return the error for a token id outside a vocabulary, the base's or an adapter version's."""
    return InvalidParameter(f"token ids must be >= 0 and < {vocab}", parameter="prompt")


_HEAD_OF = {Pooling.CLASSES: HeadKind.TEXT, Pooling.TOKEN_CLASSES: HeadKind.TOKEN}
_GIVES = {HeadKind.TEXT: "classes of whole texts", HeadKind.TOKEN: "classes of tokens"}


def _task_fault(request: Request, placed: AdapterHandle) -> TaskUnsupported | None:
    """Return the refusal of a request that an adapter's head does not answer; None if the two fit.

    An adapter with a head was trained without the base's output head, so that it generates no text.
    """
    name = f"Adapter '{placed.ref.id}'"
    if request.pooling is None:
        if placed.head is None:
            return None
        return TaskUnsupported(f"{name} has a classification head and generates no text")
    wanted = _HEAD_OF.get(request.pooling)
    if wanted in (None, placed.head):
        return None
    if placed.head is None:
        return TaskUnsupported(f"{name} has no classification head")
    return TaskUnsupported(f"{name} gives {_GIVES[placed.head]}, not {_GIVES[wanted]}")
