"""Output of commands: lines, failures, tables, fields, and amounts of money."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import typer

from manylora import money
from manylora.money import NANO
from manylora.system.printable import printable

_DOLLARS = re.compile(r"(-)?\$?([0-9]{1,12})(?:\.([0-9]{1,9}))?")


def say(text: str, *, err: bool = False) -> None:
    """Print one line; control characters in it, as in texts of a server, are escaped."""
    typer.echo(printable(text), err=err)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and end the program with exit code 1."""
    say(f"manylora: {message}", err=True)
    raise typer.Exit(1)


class PlainTable:
    """Table that is printed part by part as its rows arrive. Columns in `numbers` are aligned right.

    A part with wider cells than those before it has wider columns. No cell is cut: a shortened name would be useless.
    """

    def __init__(self, columns: Sequence[str], *, numbers: Sequence[str] = ()) -> None:
        self._columns = [printable(name) for name in columns]
        self._is_number = [name in numbers for name in columns]
        self._widths = [0] * len(columns)
        self._is_begun = False

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print rows, the first time below their headings."""
        lines = [[printable(cell) for cell in row] for row in rows]
        if not self._is_begun:
            lines.insert(0, self._columns)
            self._is_begun = True
        padded = [self._padded(place, cells) for place, cells in enumerate(zip(*lines, strict=True))]
        if padded:
            typer.echo("\n".join("  ".join(cells).rstrip() for cells in zip(*padded, strict=True)))

    def _padded(self, place: int, cells: Sequence[str]) -> list[str]:
        """Return the cells of one column, padded to the width of its widest cell so far."""
        widths = [_cell_width(cell) for cell in cells]
        width = self._widths[place] = max(self._widths[place], *widths)
        spaces = [" " * (width - own) for own in widths]
        if self._is_number[place]:
            return [space + cell for space, cell in zip(spaces, cells, strict=True)]
        return [cell + space for space, cell in zip(spaces, cells, strict=True)]


def _cell_width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print rows below their headings, columns in `numbers` aligned right. On a terminal the table fits its width."""
    if not sys.stdout.isatty():
        PlainTable(columns, numbers=numbers).print(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(printable(name), justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    Console(highlight=False, markup=False, emoji=False).print(table)


def print_fields(fields: dict[str, str]) -> None:
    """Print one line for each field."""
    lines = {printable(name): printable(text) for name, text in fields.items()}
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        typer.echo(f"{name:<{width}}  {text}")


def shown(value: object) -> str:
    """Return the text of a field; None and an empty text are a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def dollars(nanousd: int | None) -> str:
    """Return nano-dollars as dollars, exact and with at least two decimals: $25.00, $0.0002. None is a dash."""
    if nanousd is None:
        return "-"
    return money.dollars(nanousd)


def nanousd_of(text: str) -> int:
    """Parse dollars (25, $0.0002, -3.50) into nano-dollars. End the program for any other text."""
    match = _DOLLARS.fullmatch(text.strip())
    if match is None:
        fail(f"an amount is in dollars with at most nine decimals, such as 25 or 0.0002. Given: {text!r}")
    sign, whole, rest = match.groups()
    amount = int(whole) * NANO + int((rest or "").ljust(9, "0"))
    return -amount if sign else amount
