"""The table of bases in `docs/bases.md`, from the catalog and the rows: `python -m tests.models.parity.page`."""

from manylora.models.fetch.known_bases import DEFAULT, KNOWN_BASES
from tests.models.parity.published import LICENCES, PUBLISHED, VERIFY
from tests.models.parity.rows import ROWS
from tests.models.text.chat_formats import KNOWN
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "bases.md"
BEGIN, END = "<!-- bases: written by `make pages` -->", "<!-- end of bases -->"
COLUMNS = (
    *("base", "features", "feature parity", "file layout", "chat format", "published file loaded", "licence"),
    "checked by",
)


def bases_table() -> str:
    """Return a line for each base of the catalog and of the families beside it."""
    known = [(base.name, base.licence) for base in KNOWN_BASES]
    lines = [_line(name, licence) for name, licence in (*known, *LICENCES.items())]
    return "\n".join([_cells(COLUMNS), _cells(["---"] * len(COLUMNS)), *lines])


def _line(name: str, licence: str) -> str:
    row = next((row for row, own in ROWS.items() if name in own.bases), None)
    features = "; ".join(ROWS[row].features) if row else "not served yet"
    parity = "yes" if row else "no"
    layout = "no" if name not in PUBLISHED else "yes"
    tests = f"`test_parity.py[{row}]`, `test_published.py[{name}]`" if row else "no test"
    if name in VERIFY:
        layout = f"yes; to be compared with the file: {', '.join(f'`{field}`' for field in VERIFY[name])}"
    loaded = "as GGUF" if name == DEFAULT.name else "no"
    chat = f"`{KNOWN[name]}`" if KNOWN.get(name) else "none" if name in KNOWN else "its file's"
    return _cells((name, features, parity, layout, chat, loaded, licence, tests))


def _cells(texts: "tuple[str, ...] | list[str]") -> str:
    return f"| {' | '.join(texts)} |"


def with_bases(page: str) -> str:
    """Return the page with today's table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{bases_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_bases(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
