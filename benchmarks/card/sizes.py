"""The shapes of `benchmarks/gpu.py`: bases of real and of tiny sizes, and the kinds of adapters on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manylora.kernels.projections import Projection

ATTENTION = (Projection.Q, Projection.K, Projection.V, Projection.O)


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """Adapters of some projections, whose ranks come in turn."""

    name: str
    projections: tuple[Projection, ...]
    ranks: tuple[int, ...]


USUAL = AdapterKind("q k v o, rank 16", ATTENTION, (16,))
KINDS = (
    AdapterKind("q k v o, ranks 4 8 16 64", ATTENTION, (4, 8, 16, 64)),
    AdapterKind("all seven, rank 16", tuple(Projection), (16,)),
    AdapterKind("all seven, rank 64", tuple(Projection), (64,)),
)
TINY_KINDS = (
    AdapterKind("q k v o, ranks 4 16", ATTENTION, (4, 16)),
    AdapterKind("all seven, rank 3", tuple(Projection), (3,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a run on one base.

    name          of the base
    config        as its `config.json`
    positions     the most of a sequence
    context       positions before a row of decoding
    rows          numbers of rows of decoding; so many sequences have keys and values
    prompt        tokens of the prompt whose throughput is measured
    first_prompt  tokens of the prompt whose first token is measured
    catalogues    numbers of adapters whose throughputs are compared, the larger first; `room` of them are on the card
    requests      requests of a catalogue, of `request` tokens of prompt and of reply, `streams` at a time
    gap_steps     steps of decoding in a turn whose gaps are measured
    kinds         of adapters whose tax is measured; those of mixed ranks first
    """

    name: str
    config: Mapping[str, Any]
    positions: int
    context: int
    rows: tuple[int, ...]
    prompt: int
    first_prompt: int
    catalogues: tuple[int, int]
    room: int
    requests: int
    request: tuple[int, int]
    streams: int
    gap_steps: int
    kinds: tuple[AdapterKind, ...]

    @property
    def max_rank(self) -> int:
        return max(rank for kind in self.kinds for rank in kind.ranks)


_CONFIG = {"rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16"}
_LLAMA = {**_CONFIG, "architectures": ["LlamaForCausalLM"]}
_MISTRAL = {**_CONFIG, "architectures": ["MistralForCausalLM"]}
_SEVEN_B = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32_000}


def _card(name: str, config: Mapping[str, Any]) -> Size:
    return Size(
        name=name,
        config=config,
        positions=2304,
        context=192,
        rows=(1, 8, 32, 64),
        prompt=2048,
        first_prompt=512,
        catalogues=(2000, 5),
        room=64,
        requests=256,
        request=(100, 10),
        streams=32,
        gap_steps=200,
        kinds=KINDS,
    )


def _tiny(name: str, config: Mapping[str, Any]) -> Size:
    return Size(
        name=name,
        config=config,
        positions=32,
        context=6,
        rows=(1, 2),
        prompt=12,
        first_prompt=6,
        catalogues=(6, 2),
        room=3,
        requests=4,
        request=(4, 1),
        streams=2,
        gap_steps=1,
        kinds=TINY_KINDS,
    )


_TINY = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 24}
SEVEN_B = (
    _card("Llama-2-7b", {**_LLAMA, **_SEVEN_B, "intermediate_size": 11_008, "max_position_embeddings": 4096}),
    _card(
        "Mistral-7B",
        {
            **_MISTRAL,
            **_SEVEN_B,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 32_768,
        },
    ),
)
TINY = (
    _tiny("tiny Llama", {**_LLAMA, **_TINY, "num_attention_heads": 2, "max_position_embeddings": 64}),
    _tiny(
        "tiny Mistral",
        {
            **_MISTRAL,
            **_TINY,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "max_position_embeddings": 64,
        },
    ),
)
