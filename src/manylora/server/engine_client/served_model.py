"""The facts about the served base model that the edge needs, so that it never has to import the engine."""

from dataclasses import dataclass

from manylora.adapter_ref import SourceName

BASE_ALIAS = "__base_model__"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What is served. The engine process tells it once, when it is ready.

    model_id          the name in replies, `x-model-id` and `/v1/models`
    base_dir          directory with config.json and tokenizer.json; the edge loads the tokenizer from it
    sha               fingerprint of the weights and their configuration
    dtype             as torch prints it without the module: `bfloat16`, `float32`
    device            `cpu` or `cuda`
    max_model_len     positions of prompt and completion together
    vocab_size        token ids are in [0, vocab_size)
    max_step_tokens   most positions computed in one step
    max_running       most sequences in one step
    aliases           other names of the base model
    adapter_roots     directories whose sub-directories are adapters
    adapter_sources   where adapters may come from
    registry_dir      folder of the server's own registry; empty: there is none
    default_source    where a name goes that no source is given with, and that no local adapter has
    created_s         seconds since 1970, for `/v1/models`
    """

    model_id: str
    base_dir: str
    sha: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    max_step_tokens: int = 256
    max_running: int = 64
    aliases: tuple[str, ...] = ()
    adapter_roots: tuple[str, ...] = ()
    adapter_sources: tuple[SourceName, ...] = (SourceName.LOCAL,)
    registry_dir: str = ""
    default_source: SourceName = SourceName.LOCAL
    created_s: int = 0

    @property
    def max_input_length(self) -> int:
        """Longest prompt: one position is left for the completion."""
        return self.max_model_len - 1

    @property
    def deployment_name(self) -> str:
        """The `{name}` of `/{tenant}/deployments/v2/llms/{name}`."""
        return self.model_id.rsplit("/", 1)[-1]

    @property
    def names(self) -> frozenset[str]:
        """Every name that means the base model; no name at all means it, too."""
        return frozenset((BASE_ALIAS, self.model_id, self.deployment_name, *self.aliases))
