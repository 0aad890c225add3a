"""`deploy/grafana/manylora.json`, made from a table of panels: `python -m tests.deploy.dashboard`."""

import json
from typing import Any, NamedTuple

from tests.support.paths import ROOT

FILE = ROOT / "deploy" / "grafana" / "manylora.json"
RATE = "$__rate_interval"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, IN_A_ROW = 8, 8, 3


class Panel(NamedTuple):
    """A graph: its title, its unit in Grafana's words, and the legend and PromQL of each line."""

    title: str
    unit: str
    lines: dict[str, str]


def quantiles(metric: str, label: str = "") -> dict[str, str]:
    """The median and the 99th percentile of a histogram, for each value of a label."""
    by, legend = (f"le, {label}", f" {{{{{label}}}}}") if label else ("le", "")
    return {
        f"{name}{legend}": f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{{{WHERE}}}[{RATE}])))"
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


WHERE = 'instance=~"$instance"'


def rate(metric: str, by: str = "", where: str = "") -> str:
    inner = f"rate({metric}{{{', '.join(filter(None, (WHERE, where)))}}}[{RATE}])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def gauge(metric: str, by: str = "instance") -> str:
    return f"sum by ({by}) ({metric}{{{WHERE}}})"


ROWS: dict[str, list[Panel]] = {
    "Requests": [
        Panel("Sequences ended a second", "reqps", {"{{reason}}": rate("manylora_requests", "reason")}),
        Panel("Tokens a second", "short", {"{{kind}}": rate("manylora_tokens", "kind")}),
        Panel("Failures a second, by code", "reqps", {"{{err}}": rate("lorax_request_failure", "err")}),
        Panel("Time to first token", "s", quantiles("manylora_time_to_first_token_seconds")),
        Panel("Whole reply", "s", quantiles("lorax_request_duration")),
        Panel("Time for each token", "s", quantiles("lorax_request_mean_time_per_token_duration")),
    ],
    "Engine": [
        Panel("Engines up", "short", {"{{instance}}": gauge("manylora_engine_up")}),
        Panel(
            "Sequences",
            "short",
            {
                "in the server": gauge("manylora_in_flight"),
                "running": gauge("lorax_batch_current_size"),
                "waiting": gauge("lorax_queue_length"),
                "waiting for an adapter": gauge("manylora_loading"),
            },
        ),
        Panel("Wait before the first step", "s", quantiles("lorax_request_queue_duration")),
        Panel(
            "KV blocks",
            "short",
            {
                "all": gauge("manylora_kv_blocks"),
                "used": gauge("manylora_kv_blocks_used"),
                "cached": gauge("manylora_kv_blocks_cached"),
                "lent to adapters": gauge("manylora_kv_blocks_lent"),
            },
        ),
        Panel(
            "Steps and preemptions a second",
            "ops",
            {"steps": rate("lorax_batch_inference_count"), "preemptions": rate("manylora_preemptions")},
        ),
        Panel(
            "Draft tokens a second",
            "short",
            {"guessed": rate("manylora_guessed_tokens"), "right": rate("manylora_guessed_right_tokens")},
        ),
    ],
    "Adapters": [
        Panel("Bytes by tier", "bytes", {"{{tier}}": gauge("manylora_adapter_bytes", "tier")}),
        Panel("Adapters by tier", "short", {"{{tier}}": gauge("manylora_adapters", "tier")}),
        Panel("Evictions a second, by tier", "ops", {"{{tier}}": rate("manylora_adapter_evictions", "tier")}),
        Panel(
            "Loads a second",
            "ops",
            {"loads": rate("manylora_adapter_loads"), "failures": rate("manylora_adapter_failures")},
        ),
        Panel("Time of a load", "s", quantiles("manylora_adapter_load_seconds", "tier")),
        Panel("Bytes loaded again within a minute ÷ loaded", "percentunit", {
            "{{instance}}": f"max by (instance) (manylora_adapter_thrash_ratio{{{WHERE}}})"}),
        Panel("The ten busiest adapters, tokens a second", "short", {
            "{{adapter}}": f"topk(10, {rate('manylora_tokens', 'adapter')})"}),
    ],
    "Dedicated deployments": [
        Panel("Replicas by state", "short", {
            "{{state}}": f"max by (state) (manylora_deployment_replicas{{{WHERE}}})"}),
        Panel(
            "Starts of replicas an hour",
            "short",
            {
                "started": f"max(increase(manylora_deployment_starts{{{WHERE}}}[1h]))",
                "failed": f"max(increase(manylora_deployment_failed_starts{{{WHERE}}}[1h]))",
            },
        ),
        Panel("Wait of a request for a replica", "s", quantiles("manylora_deployment_wait_seconds")),
    ],
    "Grammars, batches, logs": [
        Panel(
            "Grammars a second",
            "ops",
            {
                "compiled": rate("manylora_grammars_compiled"),
                "hits": rate("manylora_grammar_hits"),
                "refused: {{reason}}": rate("manylora_grammar_refusals", "reason"),
            },
        ),
        Panel("Batches", "short", {"{{state}}": gauge("manylora_batches", "state")}),
        Panel("Batch lines a second", "ops", {"{{kind}}": rate("manylora_batch_lines_finished", "kind")}),
        Panel("Log lines lost a second", "ops", {"lost": rate("manylora_log_lines_lost")}),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": WIDTH * IN_A_ROW, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "collapsed": False})
        for number, panel in enumerate(row):
            down, along = divmod(number, IN_A_ROW)
            place = {"x": WIDTH * along, "y": top + 1 + HEIGHT * down, "w": WIDTH, "h": HEIGHT}
            panels.append(_graph(len(panels) + 1, panel, place))
        top += 1 + HEIGHT * -(-len(row) // IN_A_ROW)
    instance = {"name": "instance", "type": "query", "datasource": SOURCE, "multi": True, "includeAll": True}
    query = "label_values(manylora_engine_up, instance)"
    return {
        "title": "manylora",
        "uid": "manylora",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {**instance, "query": query, "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
            ]
        },
        "panels": panels,
    }


def _graph(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    letters = "ABCDEFGH"
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": letter, "datasource": SOURCE, "expr": text, "legendFormat": legend}
            for letter, (legend, text) in zip(letters, panel.lines.items(), strict=False)
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text(), encoding="utf-8")
