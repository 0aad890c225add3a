"""Options of the launchers of LoRAX and vLLM, each with its equal here or with the difference.

Facts from LoRAX's launcher reference (docs/reference/launcher.md) and vLLM's `vllm serve` reference.
"""

from dataclasses import dataclass
from enum import StrEnum


class Takes(StrEnum):
    """The values that follow an option."""

    NONE = "none"
    ONE = "one"
    MANY = "many"


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherOption:
    """One option of a launcher.

    ours     option (`--port`) or setting (`adapters.max_rank`) that has its value; empty: none has
    differs  what is different here; empty: it is the same
    variable  environment variable that LoRAX reads in its place
    """

    takes: Takes = Takes.ONE
    ours: str = ""
    differs: str = ""
    variable: str = ""


NONE, MANY = Takes.NONE, Takes.MANY
_MEMORY = "memory is planned in bytes: see `manylora plan`; engine.memory_bytes limits it on a CPU"
_SAME = "it is always so here"
_CODE = "no code of a model's or an adapter's repository runs here"
_LOGS = "logs are JSON or lines by where they go; there is one line for each request"
_UNUSED = "there is nothing like it here, and it needs nothing in its place"
_SPECULATION = "draft tokens come from prompt look-up, engine.guess_tokens; draft models are not served"
_STATE = "run one process for each base; `manylora serve --base A --base B` serves several"
_MULTI = "several machines are a fleet: see docs/operating-a-fleet.md"

LORAX: dict[str, LauncherOption] = {
    "--model-id": LauncherOption(ours="--base", variable="MODEL_ID"),
    "--adapter-id": LauncherOption(
        variable="ADAPTER_ID", differs="requests name their adapter; a request without one gets the base"
    ),
    "--source": LauncherOption(
        differs="a base is a known name, a folder or a GGUF file; `manylora pull NAME` fetches one"
    ),
    "--adapter-source": LauncherOption(ours="adapters.default_source", variable="ADAPTER_SOURCE"),
    "--default-adapter-source": LauncherOption(ours="adapters.default_source", variable="DEFAULT_ADAPTER_SOURCE"),
    "--revision": LauncherOption(differs="pin a base by its folder, and an adapter by `org/name@revision`"),
    "--validation-workers": LauncherOption(differs=_UNUSED),
    "--sharded": LauncherOption(differs="ranks are given as `--tensor-parallel N`"),
    "--num-shard": LauncherOption(ours="--tensor-parallel", variable="NUM_SHARD"),
    "--quantize": LauncherOption(ours="--quantize", variable="QUANTIZE"),
    "--compile": LauncherOption(takes=NONE, differs=_SAME),
    "--dtype": LauncherOption(differs="bfloat16 is the form of unquantised weights"),
    "--trust-remote-code": LauncherOption(takes=NONE, differs=_CODE),
    "--max-concurrent-requests": LauncherOption(
        ours="server.max_concurrent_requests", variable="MAX_CONCURRENT_REQUESTS"
    ),
    "--max-best-of": LauncherOption(ours="server.max_best_of", variable="MAX_BEST_OF"),
    "--max-stop-sequences": LauncherOption(ours="server.max_stop_sequences", variable="MAX_STOP_SEQUENCES"),
    "--max-input-length": LauncherOption(
        differs="prompt and reply share the window: only `--max-model-len` limits a prompt"
    ),
    "--max-total-tokens": LauncherOption(ours="--max-model-len", variable="MAX_TOTAL_TOKENS"),
    "--waiting-served-ratio": LauncherOption(differs="prompts and replies run in the same step, in chunks"),
    "--max-batch-prefill-tokens": LauncherOption(
        ours="engine.max_step_tokens", differs="the tokens of one step, of prompts and replies together"
    ),
    "--max-batch-total-tokens": LauncherOption(differs=_MEMORY),
    "--max-waiting-tokens": LauncherOption(differs="a waiting request joins the next step; no number is to be set"),
    "--max-active-adapters": LauncherOption(
        differs="the device holds as many adapters as fit adapters.bank_bytes, by true size"
    ),
    "--adapter-cycle-time-s": LauncherOption(differs="adapters are exchanged as requests need them, without a cycle"),
    "--adapter-memory-fraction": LauncherOption(
        differs="adapters.bank_bytes is the device's memory for adapters, in bytes"
    ),
    "--preloaded-adapter-ids": LauncherOption(takes=MANY, ours="adapters.preload"),
    "--preloaded-adapter-source": LauncherOption(
        differs="adapters.preload names each adapter's source: `hub://org/name`"
    ),
    "--hostname": LauncherOption(ours="--host", variable="HOSTNAME"),
    "--port": LauncherOption(ours="--port", variable="PORT"),
    "-p": LauncherOption(ours="--port"),
    "--shard-uds-path": LauncherOption(differs=_UNUSED),
    "--master-addr": LauncherOption(differs=_UNUSED),
    "--master-port": LauncherOption(differs=_UNUSED),
    "--huggingface-hub-cache": LauncherOption(
        ours="model.cache_dir", differs="bases alone; adapters have the disk tier"
    ),
    "--weights-cache-override": LauncherOption(
        ours="model.cache_dir", differs="bases alone; adapters have the disk tier"
    ),
    "--disable-custom-kernels": LauncherOption(takes=NONE, ours="model.kernels=reference"),
    "--cuda-memory-fraction": LauncherOption(differs=_MEMORY),
    "--json-output": LauncherOption(takes=NONE, differs=_LOGS),
    "--otlp-endpoint": LauncherOption(
        differs="a trace's id is taken from `traceparent` and is in the reply and the log"
    ),
    "--cors-allow-origin": LauncherOption(ours="server.cors_allow_origins"),
    "--tokenizer-config-path": LauncherOption(
        differs="`model.chat_template` names a template; the tokenizer is the base's"
    ),
    "--speculative-tokens": LauncherOption(ours="engine.guess_tokens", differs=_SPECULATION),
    "--eager-prefill": LauncherOption(differs=_SAME),
    "--chunked-prefill": LauncherOption(differs=_SAME),
    "--prefix-caching": LauncherOption(ours="engine.prefix_cache"),
    "--embedding-model": LauncherOption(takes=NONE, differs="every base embeds at /v1/embeddings and /embed"),
    "--watermark-gamma": LauncherOption(differs="watermarks are not served"),
    "--watermark-delta": LauncherOption(differs="watermarks are not served"),
    "--ngrok": LauncherOption(takes=NONE, differs="put a proxy with TLS before the server"),
    "--ngrok-authtoken": LauncherOption(differs="put a proxy with TLS before the server"),
    "--ngrok-edge": LauncherOption(differs="put a proxy with TLS before the server"),
    "--download-only": LauncherOption(takes=NONE, differs="`manylora pull NAME` fetches a base"),
    "--env": LauncherOption(takes=NONE, differs="`manylora --version` and GET /info"),
}

VLLM: dict[str, LauncherOption] = {
    "--model": LauncherOption(ours="--base"),
    "--host": LauncherOption(ours="--host"),
    "--port": LauncherOption(ours="--port"),
    "--max-model-len": LauncherOption(ours="--max-model-len"),
    "--tensor-parallel-size": LauncherOption(ours="--tensor-parallel"),
    "-tp": LauncherOption(ours="--tensor-parallel"),
    "--pipeline-parallel-size": LauncherOption(differs="a base is divided by its width alone: `--tensor-parallel N`"),
    "-pp": LauncherOption(differs="a base is divided by its width alone: `--tensor-parallel N`"),
    "--data-parallel-size": LauncherOption(differs=_MULTI),
    "-dp": LauncherOption(differs=_MULTI),
    "--distributed-executor-backend": LauncherOption(differs=_MULTI),
    "--enable-lora": LauncherOption(takes=NONE, differs=_SAME),
    "--lora-modules": LauncherOption(takes=MANY, ours="uploads"),
    "--max-loras": LauncherOption(
        differs="adapters of one step are not limited; the device holds as many as fit adapters.bank_bytes"
    ),
    "--max-lora-rank": LauncherOption(ours="adapters.max_rank", differs="each adapter takes memory by its own rank"),
    "--max-cpu-loras": LauncherOption(differs="adapters.host_bytes is the host's memory for adapters, in bytes"),
    "--lora-dtype": LauncherOption(differs="an adapter is held in bfloat16, or in the form of the base's back end"),
    "--lora-extra-vocab-size": LauncherOption(differs="added tokens of an adapter need no setting"),
    "--fully-sharded-loras": LauncherOption(takes=NONE, differs=_SAME),
    "--default-mm-loras": LauncherOption(differs="images and sounds are not served"),
    "--max-num-seqs": LauncherOption(ours="engine.max_running"),
    "--max-num-batched-tokens": LauncherOption(ours="engine.max_step_tokens"),
    "--gpu-memory-utilization": LauncherOption(differs=_MEMORY),
    "--kv-cache-memory-bytes": LauncherOption(ours="engine.kv_bytes"),
    "--kv-cache-dtype": LauncherOption(differs="keys and values are held in the form of the base's back end"),
    "--cpu-offload-gb": LauncherOption(differs="a base is held whole; `--quantize int8` or int4 makes it smaller"),
    "--swap-space": LauncherOption(differs="a preempted request is computed again"),
    "--block-size": LauncherOption(ours="engine.block_size"),
    "--dtype": LauncherOption(differs="bfloat16 is the form of unquantised weights"),
    "--quantization": LauncherOption(ours="--quantize"),
    "-q": LauncherOption(ours="--quantize"),
    "--load-format": LauncherOption(differs="safetensors and GGUF files are read by what they are"),
    "--download-dir": LauncherOption(ours="model.cache_dir"),
    "--device": LauncherOption(ours="--device"),
    "--enforce-eager": LauncherOption(takes=NONE, differs=_UNUSED),
    "--enable-prefix-caching": LauncherOption(takes=NONE, ours="engine.prefix_cache=true"),
    "--no-enable-prefix-caching": LauncherOption(takes=NONE, ours="engine.prefix_cache=false"),
    "--enable-chunked-prefill": LauncherOption(takes=NONE, differs=_SAME),
    "--no-enable-chunked-prefill": LauncherOption(takes=NONE, differs="prompts always run in chunks"),
    "--scheduling-policy": LauncherOption(differs="tenants share fairly by weight; batches run behind requests"),
    "--speculative-config": LauncherOption(differs=_SPECULATION),
    "--served-model-name": LauncherOption(
        takes=MANY, differs="the base has its own short name; `model` may also name an adapter or nothing"
    ),
    "--api-key": LauncherOption(
        takes=MANY, ours="--auth=on", differs="each tenant has its own keys: `manylora tenants create`, `manylora keys`"
    ),
    "--chat-template": LauncherOption(ours="model.chat_template"),
    "--tokenizer": LauncherOption(differs="the tokenizer is the base's, or an adapter's own"),
    "--tokenizer-mode": LauncherOption(differs="the tokenizer is the base's, or an adapter's own"),
    "--revision": LauncherOption(differs="pin a base by its folder, and an adapter by `org/name@revision`"),
    "--trust-remote-code": LauncherOption(takes=NONE, differs=_CODE),
    "--generation-config": LauncherOption(differs="a request's own fields decide; the base's file has its end tokens"),
    "--enable-auto-tool-choice": LauncherOption(takes=NONE, differs=_SAME),
    "--tool-call-parser": LauncherOption(differs="model.tool_format is found by the base; set it where it is not"),
    "--reasoning-parser": LauncherOption(differs="reasoning is part of the text"),
    "--limit-mm-per-prompt": LauncherOption(differs="images and sounds are not served"),
    "--task": LauncherOption(differs="generation and embeddings are served side by side"),
    "--runner": LauncherOption(differs="generation and embeddings are served side by side"),
    "--allowed-origins": LauncherOption(ours="server.cors_allow_origins"),
    "--ssl-keyfile": LauncherOption(differs="put a proxy with TLS before the server"),
    "--ssl-certfile": LauncherOption(differs="put a proxy with TLS before the server"),
    "--root-path": LauncherOption(differs="`server.public_url` has the whole address, not its path alone"),
    "--seed": LauncherOption(differs="a request's own `seed` decides"),
    "--disable-log-requests": LauncherOption(takes=NONE, differs=_LOGS),
    "--no-enable-log-requests": LauncherOption(takes=NONE, differs=_LOGS),
    "--enable-log-requests": LauncherOption(takes=NONE, differs="prompts and replies are never logged"),
    "--disable-log-stats": LauncherOption(takes=NONE, differs=_LOGS),
    "--uvicorn-log-level": LauncherOption(differs=_LOGS),
    "--otlp-traces-endpoint": LauncherOption(
        differs="a trace's id is taken from `traceparent` and is in the reply and the log"
    ),
    "--api-server-count": LauncherOption(differs=_STATE),
}

LORAX_DEFAULTS = {"--host": "0.0.0.0", "--port": "3000", "--max-model-len": "2048"}
VLLM_DEFAULTS = {"--host": "0.0.0.0", "--port": "8000"}
"""Values of a launcher without the option, which differ here."""
