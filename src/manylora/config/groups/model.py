"""Settings of the model."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting

DEFAULT_BASE = "SmolLM2-135M-Instruct"
DEFAULT_SPIN_US = 50  # docs/decisions/threads.md has the measurement
TOOL_FORMATS = (
    "auto",
    "hermes",
    "qwen3-coder",
    "mistral",
    "mistral-v11",
    "mistral-v13",
    "llama3",
    "llama3-builtin",
    "llama3-function",
)
KERNELS = ("auto", "native", "native-bf16", "reference", "torch", "triton")
"""Names of back ends; `kernels/select.py` makes each."""
CARD_KERNELS = ("auto", "torch", "triton")
"""Those of `KERNELS` that compute on a card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The base models and their arithmetic."""

    base: str = setting(
        DEFAULT_BASE,
        text="""
        The base model: a name that `manylora pull` knows, a directory with a `config.json`, or a GGUF file.
        """,
    )
    more_bases: tuple[str, ...] = setting(
        (),
        text="""
        Further base models of this server, each given as `model.base` (on the command line, `--base` once more). Each
        has an engine process of its own. `model.base` is the default: requests without a model's name get it. No two
        may have one name, in letters of any case ([several bases](several-bases.md)).
        """,
    )
    memory_share_of: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.share_of_base,
        text="""
        Shares of bases in the memory that the weights, step buffers and processes of all bases leave, such as
        `["Mistral-7b-instruct=3", "Zephyr-7b-beta=1"]`: of four parts, the first gets three. Shares are whole numbers
        from 1 to 1,000. A base outside the list has the share 1, so that an empty list divides that memory equally.
        """,
    )
    quantize_of: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.quantize_of_base,
        text="""
        The value of `model.quantize` for single bases, such as `["Llama-2-13b-chat=int8"]`.
        """,
    )
    max_model_len_of: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.window_of_base,
        text="""
        The value of `engine.max_model_len` for single bases, such as `["Yarn-Mistral-7b-128k=32768"]`.
        """,
    )
    chat_template: str = setting(
        "",
        text="""
        A file with a chat template (Jinja), which chat on the base uses in place of its own. A base without a template
        ([which](bases.md)) serves chat with this file alone, or with an adapter that has a template. An adapter's own
        template counts before it. Empty: the template in the base's files.
        """,
    )
    tool_format: str = setting(
        "auto",
        choices=TOOL_FORMATS,
        text="""
        The form in which the base writes calls of tools. `hermes`: `<tool_call>` and a JSON object (Hermes,
        Qwen). `mistral`: `[TOOL_CALLS]` and a JSON array. `mistral-v13`: for each call `[TOOL_CALLS]`, the
        name, `[ARGS]` and the arguments. `mistral-v11`: the same with `[CALL_ID]` and an id behind the name.
        `llama3`: a JSON object alone (Llama 3.1 and later). `llama3-builtin`: the same, and Llama's own tools
        `brave_search`, `wolfram_alpha` and `code_interpreter` behind `<|python_tag|>`. `llama3-function`:
        `<function=name>`, a JSON object of arguments and `</function>`. `qwen3-coder`: `<tool_call>`,
        `<function=name>` and a tag for each argument. `auto`: the form that the chat template shows. A template
        that does not read `tools` serves none of them.
        """,
    )
    device: str = setting(
        "cpu",
        check=checks.device,
        text="""
        The device of the arithmetic (flag `--device` of `serve` and `generate`): `cpu`, `cuda` (the first card),
        `cuda:1` (the second) and so on, or `auto`: the first card where torch finds one, else the CPU. A card holds
        weights, keys and values, and adapters in bf16 (float16 before compute capability 8.0), or its weights as
        `model.quantize` says, and serves one base; a host tier stands beside it ([how](gpu.md)). `auto` stays on the
        CPU where `model.kernels`, a second base or several ranks ask for it.
        """,
    )
    kernels: str = setting(
        "auto",
        choices=KERNELS,
        text="""
        The arithmetic. `native`: C++ kernels with bf16 weights and float32 activations. `native-bf16`: the same with
        activations rounded to bf16 in linear layers and in attention, more than twice as fast for many rows, on
        processors with AVX512-BF16 ([how](decisions/bf16-products.md)). `reference`: plain float32, slow, the oracle of
        the tests. `torch`: operations of torch alone, on any `model.device`. `triton`: own kernels in Triton beside
        products of torch, on a card. `auto`: `triton` on a card, or `torch` where Triton is not installed; on a CPU
        `native-bf16` where it works, else `native`, or `reference` without a compiler. `auto` chooses by the machine's
        features and never by a timing, so that equal machines, and one machine before and after a restart, give the
        same tokens. A named back end of a CPU that cannot work falls back to `native` with a warning. Machines with and
        without AVX512-BF16 round differently: name `native` where both must agree. `onednn`, an earlier value, means
        `native-bf16` until release 0.3, with a warning.
        """,
    )
    quantize: str = setting(
        "none",
        choices=checks.QUANTIZE,
        text="""
        `none` holds the base's weights as the back end does. `int8` (flag `--quantize int8` of `serve` and `generate`)
        holds every linear layer, the embedding and the head in int8: half the memory of bf16, faster linear layers, at
        a small loss of quality ([how](decisions/int8.md)). `int4` holds the linear layers in 5 bits a weight, scales
        included, and the embedding and the head in int8: a third of the memory of bf16, at a larger loss
        ([how](decisions/int4.md)). Adapters, norms, keys and values stay as they are, and so does an adapter that was
        trained on a base of four bits (QLoRA). A card holds the same forms ([how](gpu.md)), and keeps with `none` what
        a checkpoint stores in four bits. `model.kernels` must be `auto`, `native`, `torch` or `triton`.
        """,
    )
    embedding_pooling: str = setting(
        "mean",
        choices=("mean", "last"),
        text="""
        The vector of a prompt in `/v1/embeddings` and `/embed`. `mean`: the mean of the final hidden states of all
        tokens, which suits a base trained to generate. `last`: the last token's state, for adapters that were trained
        so ([why](decisions/embeddings.md)). The vector is divided by its length.
        """,
    )
    threads: int = setting(
        0,
        low=0,
        text="""
        Threads for the arithmetic. 0: as many as affinity and the CPU quotas of the process's control groups allow, at
        least one. The ranks of `model.tensor_parallel` divide them, each with at least one.
        """,
    )
    tensor_parallel: int = setting(
        1,
        low=1,
        high=1_024,
        text="""
        Ranks that share the base: processes, each with a part of the heads, of the feed-forward width and of the
        vocabulary. The number must divide the base's heads and its feed-forward width. With `model.device` `cuda` rank
        0 has the first card, rank 1 the second, and so on.
        """,
    )
    tensor_parallel_of: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.degree_of_base,
        text="""
        The value of `model.tensor_parallel` for single bases, such as `["Llama-2-13b-chat=2"]`.
        """,
    )
    collectives: str = setting(
        "gloo",
        choices=("gloo", "nccl"),
        text="""
        The library by which the ranks of `model.tensor_parallel` add up their parts of a step: `gloo` in the memory of
        the machine, `nccl` between CUDA devices. `nccl` was never run; a machine without such a device refuses it.
        """,
    )
    rank_timeout_s: float = setting(
        20.0,
        low=1.0,
        high=3_600.0,
        text="""
        Longest wait of a rank for the others, in seconds. After it all ranks of the base start anew, as after the death
        of one. With several ranks it must be at least two seconds below `server.health_stall_s`: a server would end
        the engine as stuck before the lost rank is named.
        """,
    )
    spin_us: int = setting(
        DEFAULT_SPIN_US,
        low=0,
        high=1_000_000,
        text="""
        Microseconds for which a thread of the native kernels waits awake for its next work before it sleeps. 0: it
        sleeps at once, which costs a wake-up for nearly every kernel ([how it was chosen](decisions/threads.md)).
        """,
    )
    cache_dir: str = setting(
        "",
        text="""
        Folder of bases, packed adapters and compiled kernels. Empty: `$XDG_CACHE_HOME/manylora`, else
        `~/.cache/manylora`.

        Damaged files there are replaced. Compiled kernels carry a checksum; a mismatch, or a file that another user may
        have written, compiles them anew. A base carries the SHA-256 of each of its files, written by `manylora pull`:
        each start compares sizes, headers and all content but the weights; the first use, any change of a file, and
        `manylora pull --verify` read the weights whole. Files that differ are fetched anew. A base from version 0.1
        gets its checksums at the first start: known weights prove the embedded base, of other bases only the structure
        is checked. Each read of a packed adapter verifies it, and a mismatch packs it anew. The server never changes a
        directory of your own, given as `model.base`, and names the damage instead.
        """,
    )
