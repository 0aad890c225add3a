"""The metrics of the server: the edge's counts and the engine's numbers, as Prometheus text or as JSON."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import LOAD_BUCKETS_S, LoadTimes
from manylora.engine.events import EngineStats, Finished
from manylora.ids import PROBE_FLOW
from manylora.rollouts.draw import DrawnArm
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.observability.metric_table import (
    BASE_LABEL,
    MAX_ADAPTER_LABELS,
    METRICS,
    OTHER_ADAPTERS,
    Metric,
    MetricKind,
)

SECOND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
Labelled = Mapping[str, Mapping[tuple[str, ...], float]]
TOKEN_BUCKETS = tuple(2.0**power for power in range(18))
OTHER_REPLICAS = "other"
BaseStats = Mapping[str, EngineStats | None]
"""The numbers of the engine of each base, by the base's name; None before an engine's first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeNow:
    """The state of the edge at one scrape.

    in_flight       number of admitted sequences
    is_up           whether the engine of each base takes requests
    shows_private   whether the reader may see the names of private adapters, and of replicas
    lost_log_lines  log lines that the edge and its engines could not write
    silent          the replicas of fleets that did not answer
    labelled        values of the metrics with labels that another part of the edge counts, by name and labels
    """

    in_flight: int
    is_up: Mapping[str, bool]
    shows_private: bool
    lost_log_lines: int = 0
    silent: Sequence[str] = ()
    labelled: "Labelled" = field(default_factory=dict)


class Meters:
    """All metrics of one server. Counters with LoRAX's names have no suffix `_total`, as in LoRAX.

    Adapters that not every caller's lists show (`Catalogue`) are private: only operators see their names, and other
    readers see their sum.
    """

    def __init__(self, bases: Sequence[str] = ()) -> None:
        """`bases` has the names of the served bases. With several, numbers of one base have the label `base`."""
        self._has_bases = has_bases = len(bases) > 1
        self._registry = CollectorRegistry()
        self._histograms: dict[str, Histogram] = {}
        totals = [m for m in METRICS if m.kind is MetricKind.COUNTER and not m.is_engine_s]
        self._totals = _Totals(totals, has_bases=has_bases)
        self._gauges: dict[str, Gauge] = {}
        self._engine = _EngineNumbers([metric for metric in METRICS if metric.is_engine_s], has_bases=has_bases)
        for metric in METRICS:
            if metric.is_engine_s:
                continue
            if metric.kind is MetricKind.HISTOGRAM:
                buckets = SECOND_BUCKETS if metric.unit == "seconds" else TOKEN_BUCKETS
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.help, registry=self._registry, buckets=buckets
                )
            elif metric.kind is MetricKind.GAUGE:
                labels = metric.labels_of(has_bases=has_bases)
                self._gauges[metric.name] = Gauge(metric.name, metric.help, labels, registry=self._registry)
        self._registry.register(self._totals)
        self._registry.register(self._engine)
        self._adapters: set[str] = set()
        self._arms: set[str] = set()
        self._public: set[str] = {BASE_LABEL, OTHER_ADAPTERS}

    def note_reply(self, status: int, error_code: str | None, duration_s: float) -> None:
        """Count the end of an inference request, by a reply or by the caller's leaving."""
        self._totals.add("lorax_request_count", ())
        if status < 400 and error_code is None:
            self._totals.add("lorax_request_success", ())
        else:
            self._totals.add("lorax_request_failure", (error_code or f"status_{status}",))
        self._histograms["lorax_request_duration"].observe(duration_s)

    def note_work(
        self,
        sizes: Iterable[tuple[int, int]],
        generated: int,
        timings: Mapping[str, float],
        validation_s: float,
        *,
        is_whole: bool,
    ) -> None:
        """Record the end of a request's sequences; `sizes` has (prompt tokens, max_new_tokens) of each sequence.

        The engine's own times are recorded only for a request whose sequences all ended normally.
        """
        observe = {name: histogram.observe for name, histogram in self._histograms.items()}
        observe["lorax_request_validation_duration"](validation_s)
        observe["lorax_request_generated_tokens"](generated)
        for prompt_tokens, max_new_tokens in sizes:
            observe["lorax_request_input_length"](prompt_tokens)
            observe["lorax_request_max_new_tokens"](max_new_tokens)
        if is_whole and generated:
            inference_s = timings["inference_ms"] / 1e3
            observe["lorax_request_queue_duration"](timings["queue_ms"] / 1e3)
            observe["lorax_request_inference_duration"](inference_s)
            observe["lorax_request_mean_time_per_token_duration"](inference_s / generated)
            observe["manylora_time_to_first_token_seconds"](timings["time_to_first_token_ms"] / 1e3)

    def note_finished(self, base: str, stream: SequenceStream, finished: Finished) -> None:
        """Count the end of a base's sequence, also without a reader of its stream. Ignore the server's own probes."""
        if stream.request.flow == PROBE_FLOW:
            return
        label = self._adapter_label(stream.request.adapter, has_run=finished.queue_ms is not None)
        of_base = (base,) if self._has_bases else ()
        self._totals.add("manylora_requests", (label, finished.reason.value, *of_base))
        counts = finished.counts
        kinds = {"prompt": counts.prompt_tokens, "cached": counts.cached_tokens, "completion": counts.completion_tokens}
        if finished.queue_ms is not None:
            for kind, count in kinds.items():
                self._totals.add("manylora_tokens", (label, kind, *of_base), count)

    def note_arm(self, drawn: DrawnArm, role: str, result: str) -> None:
        """Count the end of a request to an alias, or of its shadow. The number of labels is bounded as of adapters."""
        name = f"{drawn.owner}/{drawn.alias}@{drawn.version}"
        if len(self._arms) < MAX_ADAPTER_LABELS:
            self._arms.add(name)
        label = name if name in self._arms else OTHER_ADAPTERS
        self._totals.add("manylora_alias_requests", (label, role, result))

    def note_wait(self, wait_s: float) -> None:
        """Record the wait of a request for a replica of a dedicated deployment, also of one that got none."""
        self._histograms["manylora_deployment_wait_seconds"].observe(wait_s)

    def exposition(self, stats: BaseStats, now: EdgeNow) -> bytes:
        """Return Prometheus's text. `stats` has the numbers of each base's engine."""
        self._refresh(stats, now)
        return generate_latest(self._registry)

    def as_json(self, stats: BaseStats, now: EdgeNow) -> dict[str, object]:
        """Return `{family: {"type", "data": [{"key", "value"}]}}`; a key is a sample's name with its labels."""
        self._refresh(stats, now)
        return {
            family.name: {
                "type": family.type,
                "data": [{"key": _key(s.name, s.labels), "value": s.value} for s in family.samples],
            }
            for family in self._registry.collect()
        }

    def _refresh(self, stats: BaseStats, now: EdgeNow) -> None:
        self._engine.stats = stats
        self._totals.shown = None if now.shows_private else self._public
        self._totals.set("manylora_log_lines_lost", now.lost_log_lines)
        self._gauges["manylora_in_flight"].set(now.in_flight)
        silent = self._gauges["manylora_replica_silent"]
        silent.clear()  # those that have answered since
        for replica in now.silent:
            silent.labels(replica if now.shows_private else OTHER_REPLICAS).inc()
        for base, is_up in now.is_up.items():
            gauge = self._gauges["manylora_engine_up"]
            (gauge.labels(base) if self._has_bases else gauge).set(is_up)
        for name, values in now.labelled.items():
            for labels, value in values.items():
                if name in self._gauges:
                    self._gauges[name].labels(*labels).set(value)
                else:
                    self._totals.set(name, value, labels)

    def _adapter_label(self, adapter: AdapterRef | None, *, has_run: bool) -> str:
        """Return the label of an adapter.

        The number of labels is bounded. An adapter gets its own label only after a first run, so that names that do not
        exist use up no labels.
        """
        if adapter is None:
            return BASE_LABEL
        name = adapter.full_id
        if has_run and len(self._adapters) < MAX_ADAPTER_LABELS:
            self._adapters.add(name)
            if all(member.source is SourceName.LOCAL for member in adapter.members):
                self._public.add(name)
        return name if name in self._adapters else OTHER_ADAPTERS


class _Totals(Collector):
    """Counters under their exact names, to which the client library would append `_total`.

    shown  the adapters with a label of their own, while the others are summed; None: all adapters
    """

    def __init__(self, metrics: Iterable[Metric], *, has_bases: bool) -> None:
        self._has_bases = has_bases
        self.shown: Container[str] | None = None
        self._metrics = {metric.name: metric for metric in metrics}
        self._values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self._metrics}
        for name, metric in self._metrics.items():
            if not metric.labels:
                self._values[name][()] = 0.0

    def add(self, name: str, labels: tuple[str, ...], amount: float = 1.0) -> None:
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + amount

    def set(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        """Set a total that another part counts."""
        self._values[name][labels] = value

    def collect(self) -> Iterable[Family]:
        for name, metric in self._metrics.items():
            family = Family(name, metric.help, "unknown")
            names = metric.labels_of(has_bases=self._has_bases)
            for labels, value in self._summed(metric).items():
                family.add_sample(name, dict(zip(names, labels, strict=True)), value)
            yield family

    def _summed(self, metric: Metric) -> Mapping[tuple[str, ...], float]:
        values = self._values[metric.name]
        if self.shown is None or not metric.labels or metric.labels[0] != "adapter":
            return values
        sums: dict[tuple[str, ...], float] = {}
        for (adapter, *rest), value in values.items():
            labels = (adapter if adapter in self.shown else OTHER_ADAPTERS, *rest)
            sums[labels] = sums.get(labels, 0.0) + value
        return sums


class _EngineNumbers(Collector):
    """The gauges and totals of each base's engine, from its latest numbers."""

    def __init__(self, metrics: Iterable[Metric], *, has_bases: bool) -> None:
        self._metrics = tuple(metrics)
        self._has_bases = has_bases
        self.stats: BaseStats = {}

    def collect(self) -> Iterable[Family]:
        for metric in self._metrics:
            if metric.kind is MetricKind.HISTOGRAM:
                yield self._load_times(metric)
                continue
            family = Family(metric.name, metric.help, "gauge" if metric.kind is MetricKind.GAUGE else "unknown")
            if metric.stat is not None:
                self._add(family, metric, (), metric.stat)
            for value, path in metric.series:
                self._add(family, metric, (value,), path)
            yield family

    def _add(self, family: Family, metric: Metric, labels: tuple[str, ...], path: str) -> None:
        names = metric.labels_of(has_bases=self._has_bases)
        for base, stats in self.stats.items():
            if stats is not None:
                values = (*labels, base) if self._has_bases else labels
                family.add_sample(family.name, dict(zip(names, values, strict=True)), attrgetter(path)(stats))

    def _load_times(self, metric: Metric) -> Family:
        """Return a histogram for each source and tier, with the store's buckets as Prometheus's cumulative ones."""
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels_of(has_bases=self._has_bases))
        for base, stats in self.stats.items():
            times: Sequence[LoadTimes] = () if stats is None else stats.adapters.load_times
            for entry in times:
                buckets = list(zip([*map(str, LOAD_BUCKETS_S), "+Inf"], accumulate(entry.counts), strict=True))
                labels = [entry.source, entry.tier, *([base] if self._has_bases else [])]
                family.add_metric(labels, buckets=buckets, sum_value=entry.total_s)
        return family


def _key(name: str, labels: Mapping[str, str]) -> str:
    return name if not labels else name + "{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}"
