"""The bounds of a request, and the refusals of requests that exceed them."""

from dataclasses import dataclass

from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request
from manylora.engine.scheduling.pins import unknown_tokens
from manylora.engine.scheduling.sequence import Sequence
from manylora.errors import ContextLengthExceeded, InvalidParameter, ManyloraError, RequestRejected, TaskUnsupported
from manylora.failure import Failure
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.usage import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The bounds of a request.

    max_model_len  positions of one sequence, prompt and completion together
    vocab          token ids of the base are in [0, vocab)
    max_waiting    accepted requests that do not run yet; `sharing.has_place` shares them among flows
    max_queue_s    a request that has not begun to run after this long ends with `QueueTimeout`
    """

    max_model_len: int
    vocab: int
    max_waiting: int
    max_queue_s: float

    def refusal(self, request: Request, longest: int) -> RequestRejected | None:
        """Return the reason for which a request can never be served, or None.

        Args:  longest  positions of the longest sequence that the KV cache serves; at most `max_model_len`
        """
        prompt, budget = len(request.tokens), request.stop.max_new_tokens
        if prompt == 0:
            return InvalidParameter("`inputs` cannot be empty", parameter="inputs")
        if prompt + budget > longest:
            return ContextLengthExceeded(
                f"`inputs` tokens + `max_new_tokens` must be <= {longest}. "
                f"Given: {prompt} `inputs` tokens and {budget} `max_new_tokens`",
                parameter="max_new_tokens",
            )
        if request.adapter is None and request.pooling is not None and request.pooling.needs_head:
            return TaskUnsupported("the base model has no classification head; name an adapter that has one")
        known = self.vocab + (0 if request.adapter is None else MAX_ADDED_TOKENS)  # the pinned version decides
        if not 0 <= min(request.tokens) <= max(request.tokens) < known:
            return unknown_tokens(self.vocab)
        return None


def no_token_left(sequence: Sequence) -> ManyloraError:
    """Return the error for a sequence whose rules bar every token."""
    if sequence.matcher is not None:
        return sequence.matcher.no_token_left()
    return InvalidParameter(
        "`allowed_token_ids`, `bad_words` and `min_tokens` together leave no token to generate",
        parameter="allowed_token_ids",
    )


def rejected(request: Request, error: ManyloraError) -> Finished:
    """Return the end of a request that is refused."""
    counts = Counts(prompt_tokens=len(request.tokens), cached_tokens=0, completion_tokens=0)
    return Finished(request_id=request.id, reason=FinishReason.REJECTED, counts=counts, failure=Failure.of(error))
