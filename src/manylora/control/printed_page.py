"""The page of an invoice in HTML around its table, and texts without control characters."""

import html


def printed_page(title: str, style: str, content: str) -> str:
    """Return a page without scripts.

    Args:  title    plain text, which is escaped here
           style    CSS, begun and ended by a line break
           content  HTML of the lines below the heading, without a line break at its end
    """
    shown = html.escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{shown}</title>
<style>{style}</style>
</head>
<body>
<h1>{shown}</h1>
{content}
</body>
</html>
"""


def printed_table(heads: str, rows: str, foot: str = "") -> str:
    """Return a table of HTML cells and rows. `foot`: the element with the sums; empty: there is none."""
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n{foot}</table>"


def plain(text: str) -> str:
    """Return a text without control characters. It differs from `printable`, since a sent invoice keeps its bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
