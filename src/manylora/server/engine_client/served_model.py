"""The facts about the served base model that the edge needs, so that it does not import the engine."""

from dataclasses import dataclass

from manylora.adapter_ref import SourceName

BASE_ALIAS = "__base_model__"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The served base model. The engine process sends it once, when it is ready.

    model_id          the name in replies, `x-model-id` and `/v1/models`
    base_dir          directory with config.json and tokenizer.json; the edge loads the tokenizer from it
    chat_template     the operator's template in place of the base's own; empty: there is none
    sha               fingerprint of the weights and their configuration
    dtype             torch's name of the type: `bfloat16`, `float16`, `float32`
    device            `cpu` or `cuda`
    max_model_len     positions of prompt and completion together
    vocab_size        token ids are in [0, vocab_size)
    max_step_tokens   largest number of positions in one step
    max_running       largest number of sequences in one step
    aliases           other names of the base model
    adapter_roots     directories whose sub-directories are adapters
    adapter_sources   the sources that adapters may come from
    registry_dir      folder of the server's own registry; empty: there is none
    default_source    the source of a name without a source that is no local adapter's
    embedding_size    elements of an embedding; 0: it is not known
    tensor_parallel   ranks that share the base
    created_s         moment for `/v1/models`, in seconds since 1970
    """

    model_id: str
    base_dir: str
    sha: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    chat_template: str = ""
    max_step_tokens: int = 256
    max_running: int = 64
    aliases: tuple[str, ...] = ()
    adapter_roots: tuple[str, ...] = ()
    adapter_sources: tuple[SourceName, ...] = (SourceName.LOCAL,)
    registry_dir: str = ""
    default_source: SourceName = SourceName.LOCAL
    embedding_size: int = 0
    tensor_parallel: int = 1
    created_s: int = 0

    @property
    def max_input_length(self) -> int:
        """Number of tokens of the longest prompt, which leaves one position for the completion."""
        return self.max_model_len - 1

    @property
    def deployment_name(self) -> str:
        """The `{name}` of `/{tenant}/deployments/v2/llms/{name}`."""
        return self.model_id.rsplit("/", 1)[-1]

    @property
    def names(self) -> frozenset[str]:
        """Every name of the base model. A request without a name means the base model, too."""
        return frozenset((BASE_ALIAS, self.model_id, self.deployment_name, *self.aliases))
