"""Usage: sums by day, adapter, key and base in any time zone, and a CSV of exactly the rows that the page shows."""

import csv
import io
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.page import ConsolePage, OwnPage
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.visitors import ROOT
from manylora.console.zones import known_zone, zone_names

router = APIRouter(prefix=ROOT)
USAGE = "/v1/account/usage"
GROUPS = ("day", "adapter", "key", "base")
COUNTS = ("requests", "charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens", "cost_nanousd")
PAGE_SIZE = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@router.get("/usage")
async def usage(page: OwnPage) -> Response:
    """Show a page of sums, and the sum of the whole period; both come from the API, which sums in SQL."""
    report = await _report(page)
    asked = _asked(page)
    whole = await page.api.get(USAGE, **asked, by="")
    query = {**{name: value for name, value in asked.items() if value}, "by": ",".join(report["by"])}
    return page.render(
        "usage.html",
        report=report,
        total=whole["usage"][0],
        groups=GROUPS,
        asked=asked,
        zones=zone_names(),
        csv_address=f"{ROOT}/usage.csv?{urlencode({**query, 'after': page.query('after')})}",
        next_address=f"{ROOT}/usage?{urlencode({**query, 'after': report['next'] or ''})}",
    )


@router.get("/usage.csv")
async def usage_csv(page: OwnPage) -> Response:
    """Return the rows of the page with the same address, in the same order."""
    report = await _report(page)
    headers = {**PAGE_HEADERS, "content-disposition": 'attachment; filename="usage.csv"'}
    return page.finished(Response(_csv(report), media_type="text/csv; charset=utf-8", headers=headers))


def _asked(page: ConsolePage) -> dict[str, Any]:
    """Return the period of a page's address, and keep the zone for later pages."""
    if chosen := page.query("zone"):
        page.keep_zone(known_zone(chosen))
    month, first, last = (page.query(name) or None for name in ("month", "from", "to"))
    return {"zone": page.zone, "month": month, "from": first, "to": last}


async def _report(page: ConsolePage) -> Mapping[str, Any]:
    given = ",".join(page.request.query_params.getlist("by"))
    by = [name for name in GROUPS if name in given.split(",")] or ["day"]
    after = page.query("after") or None
    found: Mapping[str, Any] = await page.api.get(USAGE, **_asked(page), by=",".join(by), limit=PAGE_SIZE, after=after)
    return found


def _csv(report: Mapping[str, Any]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*report["by"], *COUNTS, "zone"])
    for row in report["usage"]:
        names = [_cell(name or "") for name in row["names"]]
        writer.writerow([*names, *(row[name] for name in COUNTS), report["zone"]])
    return target.getvalue()


def _cell(text: str) -> str:
    """Return a name that no spreadsheet reads as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
