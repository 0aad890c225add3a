"""One invoice with everything in it, byte for byte as it was when its files were looked through, by either rule."""

from pathlib import Path

from sqlalchemy import URL

from manylora.control.billing.invoices import InvoiceRule
from tests.control.golden_invoice import (
    FILES,
    OF_SECONDS,
    SETTINGS,
    begin_before_exact_lines,
    golden_invoice,
    golden_seconds,
)
from tests.control.plane import Plane, in_plane
from tests.control.uploading import base_settings


def test_an_invoice_is_the_one_in_the_files(url: URL, tmp_path: Path) -> None:
    check(url, tmp_path, InvoiceRule.EXACT_LINES)


def test_an_invoice_of_a_month_from_before_exact_lines_is_the_one_that_was_sent(empty_url: URL, tmp_path: Path) -> None:
    begin_before_exact_lines(empty_url)
    check(empty_url, tmp_path, InvoiceRule.ROUNDED_LINES)


def test_an_invoice_of_seconds_is_the_one_in_the_files(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for form, content in (await golden_seconds(plane)).items():
            assert content == OF_SECONDS[form].read_bytes(), (
                f"{OF_SECONDS[form]}; python -m tests.control.golden_invoice"
            )

    in_plane(url, tmp_path, scenario, settings={**SETTINGS, **base_settings(tmp_path)})


def check(url: URL, folder: Path, rule: InvoiceRule) -> None:
    async def scenario(plane: Plane) -> None:
        for form, content in (await golden_invoice(plane, rule)).items():
            file = FILES[rule][form]
            assert content == file.read_bytes(), f"{file}; python -m tests.control.golden_invoice"

    in_plane(url, folder, scenario, settings=SETTINGS)
