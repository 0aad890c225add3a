"""A request for a generation. Frozen: its progress is a `scheduling.sequence.Sequence`."""

from dataclasses import dataclass
from enum import IntEnum

from manylora.adapter_ref import AdapterRef
from manylora.engine.pooling import Pooling
from manylora.ids import Flow, RequestId
from manylora.models.text.adapter_text import NO_TEXT, AddedToken
from manylora.models.text.grammar import GrammarSource


class Priority(IntEnum):
    """The class of a request in the scheduler; a lower number goes first.

    INTERACTIVE  a caller waits for the reply
    BATCH        the rows that interactive requests leave, and a small share of the steps if they leave none
    """

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The parameters of the draw of a token from its logits. The edge has checked the values.

    temperature           ≥ 0; 0 is greedy and ignores top_k, top_p, typical_p, min_p and seed
    top_k                 > 0, keep the k most likely tokens; None keeps all
    top_p                 (0, 1], keep the smallest set of most likely tokens with at least this mass
    typical_p             (0, 1), locally typical sampling (Meister et al., arXiv 2202.00666); None is off
    min_p                 [0, 1], drop tokens below this share of the most likely one's probability
    repetition_penalty    > 0; divides positive and multiplies negative logits of tokens seen in prompt or completion
    frequency_penalty     subtracted from a logit once for each time its token was generated
    presence_penalty      subtracted from a logit if its token was generated at all
    logit_bias            (token id, value) pairs, added to the logits
    seed                  with the position and the logits it alone decides the draw: same seed, same tokens, in any
                          batch where a row's bits do not depend on others (`Kernels.is_row_independent`)
    bad_words             token sequences, each of one token or more; none is completed by a generated token, begun in
                          the prompt or the reply
    allowed_token_ids     the only tokens that may be generated, one or more; None: all
    num_logprobs          alternatives reported beside each token, 0..20; None reports no log-probability at all
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    seed: int = 0
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopParams:
    """The conditions that end a generation.

    max_new_tokens   with the prompt it fits the window (checked at admission); 0: the prompt is computed, no more
    min_new_tokens   none of the first so many tokens ends the generation, but by the budget: tokens that end it are not
                     drawn, and stop strings that they complete do not count
    stop_token_ids   any of these ends the generation; the model's own end-of-sequence set is added unless `ignore_eos`
    stop_strings     the generation ends with the token that completes one of these in the generated text; a special
                     token that the text leaves out completes a string that names it
    ignore_eos       the model's end-of-sequence tokens do not end the generation
    skip_special_tokens  whether the text leaves special tokens out
    end_token_ids    an adapter's own end-of-sequence tokens, in place of the model's; None: the model's
    added_tokens     the tokens that an adapter adds to the vocabulary; they spell text for stop strings and grammars
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    end_token_ids: tuple[int, ...] | None = None
    added_tokens: tuple[AddedToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation.

    flow         the unit of fair scheduling: the tenant
    weight       ≥ 1; flows that have requests waiting are served in proportion to it
    salt         isolation of the prefix cache: requests with different salts share no block
    adapter      None is the base model
    text         the digest of what the adapter said of text when the prompt was made; a version that says otherwise
                 does not run on it (`AdapterTextChanged`)
    waited_ms    the time already spent on its adapter's text; it counts as waiting here
    found_in     its adapter's tier when that wait began; empty: it did not wait
    priority     the scheduler's class; flows share fairly within each class
    grammar      the form of the reply; None: any text
    speculation  False: no draft tokens for this request. Speculation changes no token
    pooling      the form of the result of a request that generates nothing; None: it generates
    prompt_logprobs  alternatives reported beside each token of the prompt, 0..20; None: the prompt is not scored. The
                 positions to score are computed, whatever the prefix cache has
    """

    id: RequestId
    flow: Flow
    salt: str
    tokens: tuple[int, ...]
    adapter: AdapterRef | None
    sampling: SamplingParams
    stop: StopParams
    text: str = NO_TEXT
    waited_ms: float = 0.0
    found_in: str = ""
    grammar: GrammarSource | None = None
    speculation: bool = True
    weight: int = 1
    priority: Priority = Priority.INTERACTIVE
    pooling: Pooling | None = None
    prompt_logprobs: int | None = None
