"""The dashboard and the alerts: PromQL that parses, of metrics and labels that the table has."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from manylora.server.observability.metric_table import LORAX_METRICS, MANYLORA_METRICS, MetricKind
from tests.deploy.dashboard import FILE, text
from tests.support.paths import ROOT

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
METRICS = {metric.name: metric for metric in (*LORAX_METRICS, *MANYLORA_METRICS)}
OF_PROMETHEUS = {"instance", "job"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(FILE.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            known = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            yield f"{panel['title']}: {target['legendFormat']}", known


def labels_of(series: str) -> set[str] | None:
    """The labels of a series of the table; None: it has no such series."""
    name = re.sub(r"_(bucket|sum|count)$", "", series)
    if series in METRICS and METRICS[series].kind is not MetricKind.HISTOGRAM:
        return {*METRICS[series].labels_of(has_bases=True), *OF_PROMETHEUS}
    if name != series and name in METRICS and METRICS[name].kind is MetricKind.HISTOGRAM:
        return {
            *METRICS[name].labels_of(has_bases=True),
            *OF_PROMETHEUS,
            *({"le"} if series.endswith("_bucket") else ()),
        }
    return None


def unknown(expression: str) -> list[str]:
    """The metrics and labels of an expression that the table does not have. Raises for what is no PromQL."""
    selectors: list[Any] = []
    grouped: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    found: list[str] = []
    for selector in selectors:
        labels = labels_of(selector.name)
        named = {matcher.name for matcher in selector.matchers.matchers} | grouped
        found += [selector.name] if labels is None else sorted(f"{selector.name}: {label}" for label in named - labels)
    assert selectors, expression
    return found


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_every_series_and_label_is_in_the_table(place: str, expression: str) -> None:
    assert unknown(expression) == []


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rate(manylora_no_such[5m])", ["manylora_no_such"]),
        ("sum by (tier) (manylora_kv_blocks)", ["manylora_kv_blocks: tier"]),
        ("manylora_time_to_first_token_seconds", ["manylora_time_to_first_token_seconds"]),
        ('manylora_tokens_total{kind="prompt"}', ["manylora_tokens_total"]),
        ('manylora_tokens{sort="prompt"}', ["manylora_tokens: sort"]),
    ],
)
def test_an_unknown_series_or_label_is_found(expression: str, expected: list[str]) -> None:
    assert unknown(expression) == expected


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum by (tier (manylora_adapters)")


def test_error_codes_of_alerts_are_codes() -> None:
    named = {
        code for rule in alerts() for found in re.findall(r'err=~?"([^"]+)"', rule["expr"]) for code in found.split("|")
    }
    assert named
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")  # another test keeps it complete
    assert named <= {*re.findall(r"^### `(\w+)`$", page, re.MULTILINE)}


def test_each_alert_has_a_text_and_its_row_in_the_guide() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    for rule in alerts():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert f"| `{rule['alert']}` |" in page
    assert page.count("| `Manylora") == len(alerts())


def test_the_dashboard_is_made_from_its_table() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run `make pages`"
    panels = json.loads(text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
