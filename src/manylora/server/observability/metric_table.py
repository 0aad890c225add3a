"""The table of all metrics: the name, kind, unit, labels and meaning of each."""

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """The kind of a metric: COUNTER only grows, GAUGE is a current state, HISTOGRAM counts observations by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric family.

    stat     path of the field of `EngineStats` with its value; None: the edge counts it, or `series` has the fields
    series   (value of the label, path of the field) for each series of a family with one label
    by_base  whether the edge counts each base for itself, as it does for every number of an engine
    """

    name: str
    kind: MetricKind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    stat: str | None = None
    series: tuple[tuple[str, str], ...] = ()
    by_base: bool = False

    @property
    def is_engine_s(self) -> bool:
        """Return whether the value comes from the engine's numbers; otherwise the edge counts it."""
        return self.stat is not None or bool(self.series)

    def labels_of(self, *, has_bases: bool) -> tuple[str, ...]:
        """Return the labels; a server of several bases adds `base` where a base has a number of its own."""
        return (*self.labels, "base") if has_bases and (self.by_base or self.is_engine_s) else self.labels


MAX_ADAPTER_LABELS = 100
OTHER_ADAPTERS = "other"
BASE_LABEL = "base"

# LoRAX's names, kept so that dashboards made for it go on working.
LORAX_METRICS = (
    Metric(name="lorax_request_count", kind=MetricKind.COUNTER, unit="requests", help="Inference requests received"),
    Metric(name="lorax_request_success", kind=MetricKind.COUNTER, unit="requests", help="Inference requests answered"),
    Metric(
        name="lorax_request_failure",
        kind=MetricKind.COUNTER,
        unit="requests",
        help="Inference requests that failed, by error code",
        labels=("err",),
    ),
    Metric(
        name="lorax_request_duration",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Arrival to the end of the reply",
    ),
    Metric(
        name="lorax_request_validation_duration",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Parsing, checking and tokenising",
    ),
    Metric(
        name="lorax_request_queue_duration",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Waiting in the engine, adapter load included",
    ),
    Metric(
        name="lorax_request_inference_duration",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="First step to the last token",
    ),
    Metric(
        name="lorax_request_mean_time_per_token_duration",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Inference time divided by generated tokens",
    ),
    Metric(
        name="lorax_request_generated_tokens",
        kind=MetricKind.HISTOGRAM,
        unit="tokens",
        help="Tokens generated for a request, all its sequences together",
    ),
    Metric(name="lorax_request_input_length", kind=MetricKind.HISTOGRAM, unit="tokens", help="Prompt tokens"),
    Metric(name="lorax_request_max_new_tokens", kind=MetricKind.HISTOGRAM, unit="tokens", help="Budget of a sequence"),
    Metric(
        name="lorax_queue_length",
        kind=MetricKind.GAUGE,
        unit="requests",
        help="Requests waiting for their first step",
        stat="waiting",
    ),
    Metric(
        name="lorax_batch_current_size",
        kind=MetricKind.GAUGE,
        unit="sequences",
        help="Sequences running",
        stat="running",
    ),
    Metric(name="lorax_batch_inference_count", kind=MetricKind.COUNTER, unit="steps", help="Steps run", stat="steps"),
)

MANYLORA_METRICS = (
    Metric(
        name="manylora_requests",
        kind=MetricKind.COUNTER,
        unit="requests",
        help="Sequences ended, by adapter and reason",
        labels=("adapter", "reason"),
        by_base=True,
    ),
    Metric(
        name="manylora_alias_requests",
        kind=MetricKind.COUNTER,
        unit="requests",
        help="Requests to aliases, by alias and version, role (answer, shadow) and result (ok, error, left, dropped)",
        labels=("adapter", "role", "result"),
    ),
    Metric(
        name="manylora_tokens",
        kind=MetricKind.COUNTER,
        unit="tokens",
        help="Token positions, by adapter and kind (prompt, cached, completion)",
        labels=("adapter", "kind"),
        by_base=True,
    ),
    Metric(
        name="manylora_time_to_first_token_seconds",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Arrival to first token, adapter load included",
    ),
    Metric(
        name="manylora_log_lines_lost",
        kind=MetricKind.COUNTER,
        unit="lines",
        help="Log lines that the server and its engines could not write",
    ),
    Metric(name="manylora_in_flight", kind=MetricKind.GAUGE, unit="sequences", help="Sequences admitted by the edge"),
    Metric(
        name="manylora_engine_up",
        kind=MetricKind.GAUGE,
        unit="boolean",
        help="1 while the engine takes requests",
        by_base=True,
    ),
    Metric(
        name="manylora_loading",
        kind=MetricKind.GAUGE,
        unit="requests",
        help="Requests whose adapter is on its way",
        stat="loading",
    ),
    Metric(
        name="manylora_kv_blocks",
        kind=MetricKind.GAUGE,
        unit="blocks",
        help="Blocks of the KV cache",
        stat="kv_blocks_total",
    ),
    Metric(
        name="manylora_kv_blocks_used",
        kind=MetricKind.GAUGE,
        unit="blocks",
        help="Blocks held by sequences",
        stat="kv_blocks_used",
    ),
    Metric(
        name="manylora_kv_blocks_lent",
        kind=MetricKind.GAUGE,
        unit="blocks",
        help="KV blocks whose memory holds adapters for now",
        stat="kv_blocks_lent",
    ),
    Metric(
        name="manylora_kv_blocks_cached",
        kind=MetricKind.GAUGE,
        unit="blocks",
        help="Blocks findable in the prefix cache",
        stat="kv_blocks_cached",
    ),
    Metric(
        name="manylora_bank_bytes",
        kind=MetricKind.GAUGE,
        unit="bytes",
        help="Size of the adapter bank",
        stat="adapters.bank_bytes_total",
    ),
    Metric(
        name="manylora_adapter_bytes",
        kind=MetricKind.GAUGE,
        unit="bytes",
        help="Bytes of packed adapters; on a CPU host and device are one tier, shown as device",
        labels=("tier",),
        series=(
            ("device", "adapters.bank_bytes_used"),
            ("host", "adapters.host_bytes_used"),
            ("disk", "adapters.disk_bytes_used"),
        ),
    ),
    Metric(
        name="manylora_adapters",
        kind=MetricKind.GAUGE,
        unit="adapters",
        help="Packed adapters",
        labels=("tier",),
        series=(("device", "adapters.on_device"), ("host", "adapters.in_host"), ("disk", "adapters.on_disk")),
    ),
    Metric(
        name="manylora_adapters_pinned",
        kind=MetricKind.GAUGE,
        unit="adapters",
        help="Adapters that an operator or the configuration keeps on the device",
        stat="adapters.pinned",
    ),
    Metric(
        name="manylora_preemptions",
        kind=MetricKind.COUNTER,
        unit="sequences",
        help="Sequences preempted to make room",
        stat="preemptions",
    ),
    Metric(
        name="manylora_guessed_tokens",
        kind=MetricKind.COUNTER,
        unit="tokens",
        help="Draft tokens of prompt look-up",
        stat="draft_tokens",
    ),
    Metric(
        name="manylora_guessed_right_tokens",
        kind=MetricKind.COUNTER,
        unit="tokens",
        help="Draft tokens that were accepted",
        stat="accepted_tokens",
    ),
    Metric(
        name="manylora_adapter_loads",
        kind=MetricKind.COUNTER,
        unit="loads",
        help="Adapter loads that succeeded",
        stat="adapters.loads",
    ),
    Metric(
        name="manylora_adapter_failures",
        kind=MetricKind.COUNTER,
        unit="loads",
        help="Adapter loads that failed",
        stat="adapters.failures",
    ),
    Metric(
        name="manylora_adapter_evictions",
        kind=MetricKind.COUNTER,
        unit="adapters",
        help="Adapters evicted",
        labels=("tier",),
        series=(("device", "adapters.evictions"), ("disk", "adapters.disk_evictions")),
    ),
    Metric(
        name="manylora_adapter_load_seconds",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Time of a load, by source and tier: disk (fetched, checked, packed), host (read) or device (placed)",
        labels=("source", "tier"),
        stat="adapters.load_times",
    ),
    Metric(
        name="manylora_adapter_loaded_bytes",
        kind=MetricKind.COUNTER,
        unit="bytes",
        help="Bytes brought to the device",
        stat="adapters.loaded_bytes",
    ),
    Metric(
        name="manylora_adapter_reloaded_bytes",
        kind=MetricKind.COUNTER,
        unit="bytes",
        help="Bytes brought to the device of adapters that had been there within the last minute",
        stat="adapters.reloaded_bytes",
    ),
    Metric(
        name="manylora_adapter_thrash_ratio",
        kind=MetricKind.GAUGE,
        unit="ratio",
        help="Reloaded bytes divided by loaded bytes, since the start; 0 before the first load",
        stat="adapters.thrash_ratio",
    ),
    Metric(
        name="manylora_grammars_queued",
        kind=MetricKind.GAUGE,
        unit="grammars",
        help="Grammars whose compilation is awaited or under way",
        stat="grammars.queued",
    ),
    Metric(
        name="manylora_grammars_compiled",
        kind=MetricKind.COUNTER,
        unit="grammars",
        help="Grammars compiled",
        stat="grammars.compiled",
    ),
    Metric(
        name="manylora_grammar_hits",
        kind=MetricKind.COUNTER,
        unit="requests",
        help="Requests whose grammar another request had brought",
        stat="grammars.hits",
    ),
    Metric(
        name="manylora_grammar_refusals",
        kind=MetricKind.COUNTER,
        unit="grammars",
        help="Grammars not compiled: invalid (the compiler or its limits), slow (the limit of time), "
        "busy (too many under way) or fault (the server's own)",
        labels=("reason",),
        series=tuple((reason, f"grammars.{reason}") for reason in ("invalid", "slow", "busy", "fault")),
    ),
    Metric(
        name="manylora_grammars_kept",
        kind=MetricKind.GAUGE,
        unit="grammars",
        help="Compiled grammars that the engine keeps",
        stat="grammars.kept",
    ),
    Metric(
        name="manylora_grammar_bytes",
        kind=MetricKind.GAUGE,
        unit="bytes",
        help="Memory of these",
        stat="grammars.kept_bytes",
    ),
    Metric(
        name="manylora_grammar_drops",
        kind=MetricKind.COUNTER,
        unit="grammars",
        help="Compiled grammars that a tenant holds no more: beyond its quota, unused for long (age), because all "
        "tenants together hold too much (room) or because the tenant is closed",
        labels=("reason",),
        series=tuple((reason, f"grammars.dropped_{reason}") for reason in ("quota", "age", "room", "closed")),
    ),
    Metric(
        name="manylora_grammar_compile_seconds",
        kind=MetricKind.COUNTER,
        unit="seconds",
        help="Time of compilations, those of refused grammars included",
        stat="grammars.compile_s",
    ),
    Metric(
        name="manylora_grammar_dead_ends",
        kind=MetricKind.COUNTER,
        unit="sequences",
        help="Sequences ended because their grammar and their other rules left no token",
        stat="dead_ends",
    ),
    Metric(
        name="manylora_replica_silent",
        kind=MetricKind.GAUGE,
        unit="replicas",
        help="1 for each replica of a fleet that did not answer, by its name; for others than operators their number",
        labels=("replica",),
    ),
    Metric(
        name="manylora_ranks_up",
        kind=MetricKind.GAUGE,
        unit="ranks",
        help="Ranks of the base that take part in steps",
        stat="ranks_up",
    ),
    Metric(
        name="manylora_collective_seconds",
        kind=MetricKind.COUNTER,
        unit="seconds",
        help="Time that the first rank spent in sums over all ranks, its waits for the others included",
        stat="collective_s",
    ),
    Metric(
        name="manylora_steps_replayed",
        kind=MetricKind.COUNTER,
        unit="steps",
        help="Steps on a card that ran as a captured graph",
        stat="replayed_steps",
    ),
    Metric(
        name="manylora_steps_eager",
        kind=MetricKind.COUNTER,
        unit="steps",
        help="Steps on a card that ran operation by operation: prompts, and steps that fit no captured graph",
        stat="eager_steps",
    ),
    Metric(
        name="manylora_batches",
        kind=MetricKind.GAUGE,
        unit="batches",
        help="Batches of all servers of the control plane, by state",
        labels=("state",),
    ),
    Metric(
        name="manylora_batch_lines",
        kind=MetricKind.GAUGE,
        unit="lines",
        help="Lines without a result of the batches that this server runs, by state (queued, running)",
        labels=("state",),
    ),
    Metric(
        name="manylora_batch_lines_finished",
        kind=MetricKind.COUNTER,
        unit="lines",
        help="Lines of batches that got a result, by kind (completed, failed)",
        labels=("kind",),
    ),
    Metric(
        name="manylora_deployment_replicas",
        kind=MetricKind.GAUGE,
        unit="replicas",
        help="Replicas of all dedicated deployments of the control plane, by state (starting, ready, draining)",
        labels=("state",),
    ),
    Metric(
        name="manylora_deployment_starts",
        kind=MetricKind.COUNTER,
        unit="starts",
        help="Starts of replicas of all dedicated deployments of the control plane, failed ones included",
    ),
    Metric(
        name="manylora_deployment_failed_starts",
        kind=MetricKind.COUNTER,
        unit="starts",
        help="Replicas of dedicated deployments whose process ended unasked, before or after they were ready",
    ),
    Metric(
        name="manylora_deployment_wait_seconds",
        kind=MetricKind.HISTOGRAM,
        unit="seconds",
        help="Wait of a request at this server for a replica of a dedicated deployment without a ready one",
    ),
)

METRICS = LORAX_METRICS + MANYLORA_METRICS
