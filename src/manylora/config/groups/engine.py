"""Settings of the engine."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes of a step, of the queue and of the KV cache. 0 means: derived at start, and printed."""

    max_model_len: int = setting(
        0,
        low=0,
        check=checks.window,
        text="""
        Positions of one sequence, prompt and completion together. 0: the base model's own window. Never more than that.
        """,
    )
    max_running: int = setting(
        64,
        low=1,
        text="""
        Largest number of sequences under way.
        """,
    )
    max_step_tokens: int = setting(
        256,
        low=1,
        text="""
        Rows (tokens) of one step. The scheduler cuts longer prompts into chunks of this size, so that running streams
        keep moving. Behind a long context chunks are smaller, since attention to it counts too.
        """,
    )
    max_gap_steps: float = setting(
        8.0,
        low=2,
        high=1000,
        text="""
        Longest gap of running interactive streams beside prompts, in steps of these streams alone: the engine cuts
        chunks of prompts by its estimate of a step's time. A smaller number gives steadier streams and slower prompts.
        1000: no bound but `engine.max_step_tokens`.
        """,
    )
    batch_step_tokens: int = setting(
        64,
        low=1,
        text="""
        Largest number of rows of batch requests in one step, and four times as many as beside interactive requests. A
        smaller number makes a new interactive request wait less for the step under way, and batches slower.
        """,
    )
    guess_tokens: int = setting(
        4,
        low=0,
        text="""
        Draft tokens of one sequence in one step, from a look-up of the tokens that followed its last ones before. The
        engine draws each token anyway and compares, so that a reply has the same tokens with any value. Replies that
        repeat their prompt or themselves come faster. 0: none. Kernels whose rows depend on each other draft nothing.
        """,
    )
    guess_width: int = setting(
        4,
        low=0,
        text="""
        Largest number of sequences that draw a token in a step with draft tokens: in a wide batch other rows are worth
        more.
        """,
    )
    max_waiting: int = setting(
        1024,
        low=1,
        text="""
        Largest number of accepted requests that do not run yet. A further request gets 503 `overloaded` with
        Retry-After.
        """,
    )
    block_size: int = setting(
        16,
        low=1,
        text="""
        Positions in one block of the KV cache; the unit of the prefix cache.
        """,
    )
    kv_bytes: int = setting(
        0,
        low=0,
        high=1 << 50,
        text="""
        Bytes of the KV cache. 0: two sequences of a whole window, or 256 positions for each running sequence if that is
        more, as far as the memory goes. With a sliding window a sequence holds that window and the rows of one step.
        With `model.tensor_parallel` these are bytes of each rank.
        """,
    )
    memory_bytes: int = setting(
        0,
        low=0,
        high=1 << 50,
        text="""
        Bytes that all processes of the server may take. 0: the bytes left at the start in the tightest of its control
        groups, or else in the machine, plus those that the server has taken already ([the parts](decisions/memory.md)).
        """,
    )
    prefix_cache: bool = setting(
        True,
        text="""
        Whether later requests of the same adapter version and tenant reuse the keys and values of a prompt's beginning.
        """,
    )
    max_queue_s: float = setting(
        120.0,
        low=0.001,
        text="""
        Seconds, adapter load included, after which a request that has not begun gets 504 `queue_timeout`. While the
        engine process does not answer, the server ends such requests by its own clock.
        """,
    )
    grammar_count: int = setting(
        256,
        low=1,
        text="""
        Compiled grammars of one tenant that the engine keeps for further requests. A tenant whose running and waiting
        requests have so many different grammars waits with a further one.
        """,
    )
    grammar_bytes: int = setting(
        64 << 20,
        low=1,
        high=1 << 40,
        text="""
        Memory of these. A plain schema counts with 64 KiB and 512 bytes for each byte of its text.
        """,
    )
    grammar_ttl_s: float = setting(
        600.0,
        low=1,
        high=86_400,
        text="""
        Seconds after a tenant's last request with a grammar until the engine drops the compiled grammar. Those of a
        closed tenant go at once.
        """,
    )
