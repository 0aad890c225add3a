"""The agreement of two engines: greedy replies, compared up to the first token in which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.engine.engine import Engine
from manylora.engine.events import TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId

Reply = Sequence[TokenEvent]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token in which two replies to one prompt differ.

    prompt  index of the prompt
    token   number of equal tokens before it
    margin  nats by which the exact engine preferred its token to the next best; a small margin is a near-tie
    is_second  whether the other engine's token is that next best
    """

    prompt: int
    token: int
    margin: float
    is_second: bool


def find_divergences(
    exact: Engine, other: Engine, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[Divergence]:
    """Generate `num_tokens` greedily after each prompt on both engines and return the differences.

    The engines ignore the end of sequence.
    """
    return compare_replies(greedy_replies(exact, prompts, num_tokens), greedy_replies(other, prompts, num_tokens))


def compare_replies(exact: Sequence[Reply], other: Sequence[Reply]) -> list[Divergence]:
    """Return the divergences of two engines' replies to the same prompts; `exact` has the two best of each token."""
    found: list[Divergence] = []
    for number, (expected, got) in enumerate(zip(exact, other, strict=True)):
        for index, (one, two) in enumerate(zip(expected, got, strict=True)):
            if one.token_id != two.token_id:
                assert one.alternatives is not None  # the requests ask for two
                (_, best), (second_id, second) = one.alternatives
                found.append(Divergence(number, index, best - second, second_id == two.token_id))
                break
    return found


def greedy_replies(engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Reply]:
    """Generate `num_tokens` greedily after each prompt, in one batch, and return the replies.

    The engine ignores the end of sequence.
    """
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
    return [*found.values()]
