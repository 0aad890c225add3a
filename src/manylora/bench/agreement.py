"""How long two engines say the same: greedy replies, compared up to the first token in which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.engine.engine import Engine
from manylora.engine.events import TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token in which two replies to one prompt differ.

    prompt  which of the prompts
    token   how many tokens were the same before it
    margin  by how many nats the exact engine preferred its token to the next best: a near-tie if it is small
    is_second  whether the other engine's token is that next best
    """

    prompt: int
    token: int
    margin: float
    is_second: bool


def find_divergences(
    exact: Engine, other: Engine, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[Divergence]:
    """Generate `num_tokens` greedily after each prompt on both engines and compare, end-of-sequence ignored."""
    sides = [_replies(engine, prompts, num_tokens) for engine in (exact, other)]
    found: list[Divergence] = []
    for number, (expected, got) in enumerate(zip(*sides, strict=True)):
        for index, (one, two) in enumerate(zip(expected, got, strict=True)):
            if one.token_id != two.token_id:
                assert one.alternatives is not None  # asked for
                (_, best), (second_id, second) = one.alternatives
                found.append(Divergence(number, index, best - second, second_id == two.token_id))
                break
    return found


def _replies(engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[TokenEvent]]:
    ids = [RequestId(f"prompt-{number}") for number in range(len(prompts))]
    for request_id, tokens in zip(ids, prompts, strict=True):
        engine.submit(
            Request(
                id=request_id,
                flow=Flow("benchmark"),
                salt="",
                tokens=tuple(tokens),
                adapter=None,
                sampling=SamplingParams(temperature=0.0, num_logprobs=2),
                stop=StopParams(max_new_tokens=num_tokens, ignore_eos=True),
            )
        )
    found: dict[RequestId, list[TokenEvent]] = {request_id: [] for request_id in ids}
    while engine.has_work:
        for event in engine.step().tokens:
            found[event.request_id].append(event)
    return list(found.values())
