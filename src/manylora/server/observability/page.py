"""`docs/metrics.md`, written from the table: `python -m manylora.server.observability.page > docs/metrics.md`."""

import sys

from manylora.server.observability.metric_table import LORAX_METRICS, MANYLORA_METRICS, MAX_ADAPTER_LABELS, Metric

HEAD = f"""\
# Metrics

`GET /metrics` shows every metric as Prometheus text, or as JSON with `?format=json` or `Accept: application/json`.
Where keys are needed the route asks for the scope `admin`. Counters grow from the start of the server; gauges are
states at the moment of the request; histograms have the usual `_bucket`, `_sum` and `_count` series. Labels are
bounded: `other` counts the adapters beyond the first {MAX_ADAPTER_LABELS}, and only operators see the names of private
adapters. A server of several bases adds the label `base` to every number of an engine and to the metrics marked †; its
other metrics are of all bases together.

`make pages` writes this page from `src/manylora/server/observability/metric_table.py`.
"""


def metrics_page() -> str:
    """Return the page: one table of our own metrics, one of those with LoRAX's names."""
    parts = [
        HEAD,
        "## manylora's own\n",
        _table(MANYLORA_METRICS),
        "## With LoRAX's names\n",
        "Dashboards made for LoRAX go on working: names, units and kinds are LoRAX's.\n",
        _table(LORAX_METRICS),
    ]
    return "\n".join(parts)


def _table(metrics: tuple[Metric, ...]) -> str:
    rows = [
        f"| `{metric.name}`{' †' if metric.by_base else ''} | {metric.kind} | {metric.unit} "
        f"| {', '.join(f'`{each}`' for each in metric.labels)} "
        f"| {metric.help} |"
        for metric in metrics
    ]
    return "\n".join(["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
