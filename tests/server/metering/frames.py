"""Frames of a step by the names of requests: `a` has index 0, `b` 1 and so on."""

from collections.abc import Sequence

from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.server.engine_client.messages import StepFrame, TokenDetails
from manylora.usage import Counts


def index_of(name: str) -> int:
    return ord(name[0]) - ord("a")


def request(
    name: str,
    prompt_tokens: int = 3,
    flow: Flow = Flow("acme"),  # noqa: B008  a string
    *,
    tokens: tuple[int, ...] | None = None,
) -> Request:
    return Request(
        id=RequestId(name),
        flow=flow,
        salt="",
        tokens=tuple(range(prompt_tokens)) if tokens is None else tokens,
        adapter=None,
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=99),
    )


def frame(*names: str, ended: Sequence[Finished] = (), cached: dict[str, int] | None = None) -> StepFrame:
    """A token of each of `names`; `cached` has the cached prompt tokens of those whose first token it is."""
    details = {names.index(name): TokenDetails(cached_tokens=tokens) for name, tokens in (cached or {}).items()}
    indexes = [index_of(name) for name in names]
    return StepFrame(1, indexes, [1] * len(indexes), details, [(index_of(end.request_id), end) for end in ended])


def end(
    name: str,
    completion_tokens: int,
    *,
    prompt_tokens: int = 3,
    cached_tokens: int = 1,
    computed_tokens: int = 0,
    reason: FinishReason = FinishReason.LENGTH,
) -> Finished:
    counts = Counts(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        computed_tokens=computed_tokens,
    )
    return Finished(request_id=RequestId(name), reason=reason, counts=counts)
