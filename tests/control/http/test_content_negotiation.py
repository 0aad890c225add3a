"""The form of an invoice is the one that `?format=` names, or else the one that the header `Accept` wants."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from manylora.control.billing.invoice_forms import FORMATS
from manylora.control.http.content_negotiation import wanted_form
from tests.control.plane import Plane, in_plane


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/plain", "text"),
        ("text/csv", "csv"),
        ("text/html", "html"),
        ("TEXT/HTML; Charset=utf-8", "html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("text/*", "text"),
        ("application/*", "json"),
        ("text/csv, */*;q=0.1", "csv"),
        ("text/csv;q=0.5, text/html;q=0.7", "html"),
        ("text/csv;q=0.7, text/html;q=0.7", "csv"),
        ("text/*, text/plain;q=0", "csv"),
        ("*/*, application/json;q=0.2", "text"),
        ("application/json;q=0, */*", "text"),
        ("text/csv ; q = 0.5 , application/json; q=0.4", "csv"),
        ("image/png", "json"),
        ("image/png, text/csv;q=0", "json"),
        ("text/csv;q=x, text/html;q=0.1", "html"),
        ("text/csv;q=7, text/html;q=nan, text/plain;q=0.1", "text"),
        ("text, /, ;;;, csv/text/html, text/html", "html"),
    ],
)
def test_the_form_is_the_one_that_is_wanted_most(accept: str, form: str) -> None:
    assert wanted_form(accept, FORMATS, "json") == form


@given(st.one_of(st.text(), st.text("atex/*;q=.,0189 -ncsvhml")))
def test_whatever_the_header_says_there_is_a_form(accept: str) -> None:
    assert wanted_form(accept, FORMATS, "json") in FORMATS


def test_an_invoice_comes_in_the_form_that_is_wanted(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")

        async def kind_of(path: str, *, key: str, accept: str) -> Any:
            headers = {"authorization": f"Bearer {key}", "accept": accept}
            reply = await plane.client.get(path, headers=headers)
            assert reply.status_code == 200
            return reply

        for path, shown in (("/v1/account/invoices/2023-11", key), ("/admin/invoices/acme/2023-11", plane.admin_key)):
            for form, media in FORMATS.items():
                reply = await kind_of(path, key=shown, accept=media)
                assert (reply.headers["content-type"], reply.headers["vary"]) == (media, "Accept, origin")
                named = await kind_of(f"{path}?format={form}", key=shown, accept="text/csv")
                assert named.headers["content-type"] == media
                assert named.content == reply.content
            assert (await kind_of(path, key=shown, accept="*/*")).headers["content-type"] == "application/json"

    in_plane(url, tmp_path, scenario)
