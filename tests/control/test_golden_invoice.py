"""One invoice with everything in it, byte for byte as it was when its files were looked through."""

from pathlib import Path

from sqlalchemy import URL

from tests.control.golden_invoice import FILES, SETTINGS, golden_invoice
from tests.control.plane import Plane, in_plane


def test_an_invoice_is_the_one_in_the_files(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for form, content in (await golden_invoice(plane)).items():
            assert content == FILES[form].read_bytes(), f"{FILES[form].name}; python -m tests.control.golden_invoice"

    in_plane(url, tmp_path, scenario, settings=SETTINGS)
