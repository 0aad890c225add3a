"""The bounds of a request, and the refusals of requests that exceed them."""

from dataclasses import dataclass

from manylora.engine.request import Request
from manylora.engine.scheduling.pins import unknown_tokens
from manylora.errors import ContextLengthExceeded, InvalidParameter, RequestRejected, TaskUnsupported
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS


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
