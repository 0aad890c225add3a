"""The answers of all replicas as one answer."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from manylora.adapter_state import AdapterInfo, AdapterState, LoadTimes
from manylora.engine.events import EngineStats
from manylora.errors import AdapterNotFound, Unavailable
from manylora.failure import Failure
from manylora.server.engine_client.messages import AdapterReply, DropGrammars, GetAdapters, ManageAdapter

NONE_OPEN = "no engine takes requests now; repeat the request"
NEAREST_FIRST = (
    AdapterState.ON_DEVICE,
    AdapterState.IN_HOST,
    AdapterState.ON_DISK,
    AdapterState.FETCHING,
    AdapterState.FAILED,
    AdapterState.ABSENT,
)


def merged_infos(replies: Iterable[tuple[str, Sequence[AdapterInfo]]]) -> tuple[AdapterInfo, ...]:
    """Return one `AdapterInfo` for each adapter: its nearest tier of any replica, and the sums of its numbers.

    replies  the adapters of each replica, beside its name
    """
    found: dict[tuple[str, str, str], AdapterInfo] = {}
    for replica, infos in replies:
        for each in infos:
            key, info = (each.source, each.tenant, each.id), replace(each, replicas={replica: each.state})
            found[key] = info if key not in found else _merged(found[key], info)
    return tuple(found.values())


def merged_answer(
    question: ManageAdapter | GetAdapters | DropGrammars,
    replies: Sequence[tuple[str, AdapterReply]],
    silent: Sequence[str] = (),
) -> AdapterReply:
    """Return one answer to a question that several replicas were asked.

    replies  each beside its replica's name
    silent   the replicas that did not answer, whom the answer names

    An act that one replica refuses (in use, full) is not done, and the refusal is the answer. Else one adapter is
    missing only if all replicas that answer miss it.
    """
    failures = [reply.failure for _, reply in replies if reply.failure is not None]
    if isinstance(question, ManageAdapter):
        refusals = [each for each in failures if not issubclass(each.kind, AdapterNotFound | Unavailable)]
        if refusals:
            return AdapterReply(question.number, failure=refusals[0])
    if len(failures) < len(replies):
        infos = merged_infos([(replica, reply.infos) for replica, reply in replies])
        return AdapterReply(question.number, tuple(replace(info, silent=tuple(silent)) for info in infos))
    failure = failures[0] if failures else Failure.of(Unavailable(none_open(silent)))
    return AdapterReply(question.number, failure=failure)


def none_open(silent: Sequence[str]) -> str:
    """Return the message of a question that no replica answered."""
    return f"{NONE_OPEN} (no answer from {', '.join(silent)})" if silent else NONE_OPEN


def merged_stats(stats: Sequence[EngineStats]) -> EngineStats:
    """Return the sums of the numbers of one replica or more."""
    return cast(EngineStats, _sum(stats))


def _merged(one: AdapterInfo, other: AdapterInfo) -> AdapterInfo:
    near, far = sorted((one, other), key=lambda info: NEAREST_FIRST.index(info.state))
    uses = [info.last_use_s for info in (near, far) if info.last_use_s is not None]
    verdicts = [info.is_verified for info in (near, far)]
    return replace(
        near,
        digest=near.digest or far.digest,
        rank=near.rank or far.rank,
        num_bytes=near.num_bytes or far.num_bytes,
        pins=near.pins + far.pins,
        is_pinned=near.is_pinned or far.is_pinned,
        is_deleted=near.is_deleted or far.is_deleted,
        hits=near.hits + far.hits,
        last_use_s=min(uses, default=None),
        error=near.error or far.error,
        replicas=one.replicas | other.replicas,
        is_verified=False if False in verdicts else next((each for each in verdicts if each is not None), None),
        report=near.report or far.report,
    )


def _sum(values: Sequence[Any]) -> Any:  # objects of one dataclass of numbers
    """Return the field-wise sum of objects of one dataclass of numbers."""
    first = values[0]
    sums: dict[str, Any] = {}  # numbers, and dataclasses of them
    for field in fields(first):
        own = [getattr(value, field.name) for value in values]
        if field.name == "load_times":
            sums[field.name] = _load_times([each for times in own for each in times])
        else:
            sums[field.name] = _sum(own) if is_dataclass(own[0]) else sum(own)
    return replace(first, **sums)


def _load_times(times: Iterable[LoadTimes]) -> tuple[LoadTimes, ...]:
    found: dict[tuple[str, str], LoadTimes] = {}
    for each in times:
        known = found.get((each.source, each.tier))
        if known is None:
            found[each.source, each.tier] = each
        else:
            counts = tuple(a + b for a, b in zip(known.counts, each.counts, strict=True))
            found[each.source, each.tier] = replace(known, counts=counts, total_s=known.total_s + each.total_s)
    return tuple(found.values())
