"""The bar of loading: speed and time left on a terminal, one line in a log."""

import io

import pytest
from rich.console import Console

from manylora.cli.serve import _Terminal
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.wiring.load_progress import PASSING, LoadProgress, is_passing


def loaded(lines: list[str], pieces: int = 32) -> LoadProgress:
    """Load 4 GB at 500 MB/s, in pieces of equal size."""
    clock = ManualClock()
    progress = LoadProgress(lines.append, clock)
    for piece in range(1, pieces + 1):
        clock.advance(8 / pieces)
        progress(piece * 4_000_000_000 // pieces, 4_000_000_000)
    return progress


def test_the_bar_has_speed_and_time_left() -> None:
    lines: list[str] = []
    loaded(lines)
    assert all(map(is_passing, lines))
    assert lines[15] == f"{PASSING}weights ############............  50 %, 2.0 GB of 4.0 GB, 500 MB/s, 4 s left"


def test_the_bar_moves_at_most_five_times_a_second() -> None:
    lines: list[str] = []
    loaded(lines, pieces=4000)
    assert 35 <= len(lines) <= 40


def test_the_end_is_one_line_with_the_format() -> None:
    assert loaded([]).summary("GPTQ int4, F16") == (
        "weights loaded and packed: 4.0 GB of GPTQ int4, F16 in 8.0 s, 500 MB/s"
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_passing_lines_are_shown_in_place_and_not_at_all_in_a_log(is_terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)
    with console.status("starting") as status:
        terminal = _Terminal(console, status, Config(), is_key_needed=False)
        for line in ("tokenizer loaded", f"{PASSING}weights [##..] 50 %", "weights loaded and packed"):
            terminal.progress(line)
            if is_terminal:
                status._live.refresh()
        assert status.status == "starting"
    shown = output.getvalue()
    assert ("[##..] 50 %" in shown) == is_terminal
    if not is_terminal:
        assert [line.split("  ")[-1] for line in shown.splitlines()] == [
            "tokenizer loaded",
            "weights loaded and packed",
        ]
