"""Replies of routes that are no JSON, for the OpenAPI document."""

from typing import Any

from manylora.control.billing.invoice_forms import FORMATS

Described = dict[int | str, dict[str, Any]]  # as FastAPI takes them


def _reply(description: str, *kinds: str) -> Described:
    return {200: {"description": description, "content": {kind.partition(";")[0]: {} for kind in kinds}}}


ZIP_REPLY = _reply("A zip file", "application/zip")
INVOICE_REPLY = _reply("An invoice in the form that `format` or `Accept` asks for", *FORMATS.values())
