"""The base of each adapter: the one that its config declares, or else the one base that it fits.

The ingest of a base's engine checks an adapter's tensors against the shape of that base, and keeps the packed image
under the base's fingerprint. An adapter goes to the served base of the name in its config. A config with no name, or
with the name of a base that is not served, says nothing of the served ones: the ingest of each base is asked then.
"""

from collections import OrderedDict
from collections.abc import Sequence

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import Clock
from manylora.errors import AdapterIncompatible, InvalidParameter, ManyloraError
from manylora.http.callers import Caller
from manylora.models.fetch.catalog import short_name
from manylora.server.engine_client.served_model import BASE_ALIAS
from manylora.server.generation.base_questions import GIVE_UP_S, SILENCE_S, BaseQuestions, NoAnswer
from manylora.server.generation.models import ModelHandle
from manylora.server.names.adapter_resolver import AdapterResolver

MAX_REMEMBERED = 16_384
_Question = tuple[AdapterRef, str | None]
"""An adapter, and the name of the base that a request asks for beside it."""
FRESH_S = 1.0
"""Seconds for which the base of an adapter in a folder counts, whose files may change; that of others never changes."""


class AdapterBases:
    """Finds and remembers the base of each adapter. It belongs to one event loop."""

    def __init__(self, handles: Sequence[ModelHandle], resolver: AdapterResolver, clock: Clock) -> None:
        self._handles = tuple(handles)
        self._resolver = resolver
        self._clock = clock
        self._questions = BaseQuestions(clock)
        self._by_short_name = {
            short_name(name): each for each in handles for name in each.served.names if name != BASE_ALIAS
        }
        self._known: OrderedDict[_Question, tuple[ModelHandle, float]] = OrderedDict()

    async def of(self, ref: AdapterRef, caller: Caller, *, asked: ModelHandle | None = None) -> ModelHandle:
        """Return the base of an adapter, or of all members of a merge or a mix.

        Args:    asked  the base that the request names; None: the adapter's own
        Raises:  `AdapterIncompatible` for an adapter of another base than `asked`, of none, or of several that it fits
                 alike, and `InvalidParameter` for members of several bases; each names the base that fits. The failure
                 of an adapter that cannot be read, if its base depends on it
        """
        if len(self._handles) == 1:
            return self._handles[0]
        found = {member: await self._of_one(member, caller, asked) for member in ref.members}
        first, base = next(iter(found.items()))
        for member, other in found.items():
            if other is not base:
                raise InvalidParameter(
                    f"adapters of several bases cannot apply together: `{first.id}` is of `{base.name}`, `{member.id}` "
                    f"of `{other.name}`",
                    parameter="adapters",
                )
        return base

    def known(self, ref: AdapterRef) -> ModelHandle | None:
        """Return the base of an adapter if a request has found it before."""
        if len(self._handles) == 1:
            return self._handles[0]
        questions = [(ref.members[0], asked) for asked in (None, *(base.name for base in self._handles))]
        return next((self._known[question][0] for question in questions if question in self._known), None)

    def forget(self, ref: AdapterRef) -> None:
        """Look for the base anew with the next request."""
        for member in ref.members:
            self._known.pop((member, None), None)
            for base in self._handles:
                self._known.pop((member, base.name), None)
                base.texts.forget(member)

    async def declared(self, ref: AdapterRef) -> ModelHandle | None:
        """Return the served base that an adapter in a folder declares; None: it declares none of the served ones."""
        [declared] = await self._resolver.declared_bases([ref])
        return self._of_name(declared or "")

    async def expected(self, refs: Sequence[AdapterRef]) -> list[ModelHandle | None]:
        """Return the base of each adapter as far as it is known without any ingest, for lists."""
        known = [self.known(ref) for ref in refs]
        unknown = [ref for ref, base in zip(refs, known, strict=True) if base is None]
        declared = dict(zip(unknown, await self._resolver.declared_bases(unknown), strict=True)) if unknown else {}
        return [base or self._of_name(declared.get(ref) or "") for ref, base in zip(refs, known, strict=True)]

    async def _of_one(self, ref: AdapterRef, caller: Caller, asked: ModelHandle | None) -> ModelHandle:
        now_s, question = self._clock.monotonic_s(), (ref, None if asked is None else asked.name)
        known = self._known.get(question)
        if known is not None and (ref.source is not SourceName.LOCAL or now_s - known[1] < FRESH_S):
            base = known[0]
        else:
            base = await self._found_anew(question, caller, asked, now_s)
        if asked is not None and asked is not base:
            raise _of_another_base(ref, asked, base)
        return base

    async def _found_anew(
        self, question: _Question, caller: Caller, asked: ModelHandle | None, now_s: float
    ) -> ModelHandle:
        """Find the base of an adapter and remember it. The one known before counts while an engine does not answer."""
        known = self._known.get(question)
        try:
            base = await self._find(question[0], caller, asked, GIVE_UP_S if known is None else SILENCE_S)
        except NoAnswer:  # the engine of another base may hang or start again; the next request looks anew
            if known is None:
                raise
            return known[0]
        self._known[question] = base, now_s
        self._known.move_to_end(question)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return base

    async def _find(self, ref: AdapterRef, caller: Caller, asked: ModelHandle | None, patience_s: float) -> ModelHandle:
        """Find the base of an adapter. `patience_s`: seconds for which an engine may be silent."""
        [declared] = await self._resolver.declared_bases([ref])
        if declared is None:
            bases = self._handles if asked is None else (asked,)
            declared = await self._questions.declared(bases, ref, caller, patience_s)
        if (own := self._of_name(declared)) is not None:
            return own
        if asked is not None and await self._questions.refusal(asked, ref, caller, patience_s) is None:
            return asked
        # The hints of a refusal name the bases that answer soon; without a base in the request every answer counts.
        patience_s = patience_s if asked is None else SILENCE_S
        refusals = await self._questions.refusals(self._handles, ref, caller, patience_s)
        fitting = [each for each, refusal in refusals.items() if refusal is None]
        if asked is not None:
            if (refusal := refusals[asked]) is None:  # the folder's adapter has changed since the first question
                return asked
            raise _with_hint(refusal, ref, fitting)
        if (silent := next((each for each in refusals.values() if isinstance(each, NoAnswer)), None)) is not None:
            raise _with_hint(silent, ref, fitting)
        if len(fitting) == 1 and not declared:
            return fitting[0]
        if not fitting:
            raise _fits_none(ref, declared, self._handles)
        raise _undecided(ref, declared, fitting)

    def _of_name(self, declared: str) -> ModelHandle | None:
        return self._by_short_name.get(short_name(declared.rstrip("/"))) if declared else None


def other_base(field: str, named: ModelHandle, within: ModelHandle) -> InvalidParameter:
    """Return the refusal of a base's name on the path of another base's deployment."""
    return InvalidParameter(
        f"`{field}` names the base `{named.name}`, and this path is that of the deployment "
        f"`{within.served.deployment_name}`: use the path of `{named.served.deployment_name}`",
        parameter=field,
    )


def _of_another_base(ref: AdapterRef, asked: ModelHandle, base: ModelHandle) -> AdapterIncompatible:
    return AdapterIncompatible(
        f"Adapter '{ref.id}' is not compatible with model '{asked.name}': it belongs to the base `{base.name}`, which "
        f"this server serves: ask for `{base.name}/{ref.id}`"
    )


def _with_hint(refusal: ManyloraError, ref: AdapterRef, fitting: Sequence[ModelHandle]) -> ManyloraError:
    hints = " or ".join(f"`{base.name}/{ref.id}`" for base in fitting)
    hint = f"; it fits another base of this server: ask for {hints}" if fitting else ""
    return type(refusal)(f"{refusal.message}{hint}")


def _fits_none(ref: AdapterRef, declared: str, handles: Sequence[ModelHandle]) -> AdapterIncompatible:
    words = f", by its own words trained on `{declared}`," if declared else ""
    served = " and ".join(f"`{base.name}`" for base in handles)
    return AdapterIncompatible(f"Adapter '{ref.id}'{words} fits no base of this server: it serves {served}")


def _undecided(ref: AdapterRef, declared: str, fitting: Sequence[ModelHandle]) -> AdapterIncompatible:
    hints = " or ".join(f"`{base.name}/{ref.id}`" for base in fitting)
    why = (
        f"was trained on `{declared}`, by its own words, which this server does not serve"
        if declared
        else ("declares no base and fits several")
    )
    return AdapterIncompatible(f"Adapter '{ref.id}' {why}; its tensors fit: ask for {hints}")
