"""JSON of exports, as pydantic models."""

from typing import Any

from pydantic import BaseModel

from manylora.control.exports.usage_export import UsageExport
from manylora.control.http.schemas import Count, RequestBody, iso


class ExportBody(BaseModel):
    """The events of the hours [begin, end) by the moment of their arrival, in the form that was asked for.

    begin_ms, end_ms: for the acknowledgement. Without a whole hour they are equal, and there is no event.
    page, pages: this page, and the number of all; the acknowledgement names that number.
    """

    sink: str
    form: str
    begin: str
    end: str
    begin_ms: int
    end_ms: int
    page: int
    pages: int
    events: list[dict[str, Any]]

    @staticmethod
    def of(sink: str, form: str, export: UsageExport) -> "ExportBody":
        return ExportBody(
            sink=sink,
            form=form,
            begin=iso(export.begin_ms),
            end=iso(export.end_ms),
            begin_ms=export.begin_ms,
            end_ms=export.end_ms,
            page=export.page,
            pages=export.pages,
            events=export.events,
        )


class Acknowledgement(RequestBody):
    """The bounds of an export that its sink has taken, and the number of its pages."""

    begin_ms: Count
    end_ms: Count
    pages: Count = 1


class Acknowledged(BaseModel):
    """is_new: false for an export that was acknowledged before."""

    sink: str
    is_new: bool
