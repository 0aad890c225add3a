"""The page of metrics is the table's."""

from manylora.server.observability.metric_table import METRICS
from manylora.server.observability.page import metrics_page
from tests.support.paths import ROOT


def test_the_page_is_written_from_the_table() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page(), "run `make pages`"


def test_every_metric_has_a_row() -> None:
    page = metrics_page()
    assert [metric.name for metric in METRICS if page.count(f"\n| `{metric.name}` ") != 1] == []
