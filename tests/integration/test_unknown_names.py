"""Names that do not exist (figure R2 in small): each is answered, and nothing of them is kept."""

from pathlib import Path

from manylora.adapters.names import MAX_NAMES
from manylora.bench.unknown_names import WARM_UP, ask_engine, ask_server

NOISE_MIB = 4.0
"""What the allocator may take meanwhile; a kilobyte for each of the names below would be four times as much."""


def test_the_memory_of_an_engine_stays_flat(tmp_path: Path) -> None:
    assert WARM_UP > MAX_NAMES
    grown = ask_engine(tmp_path, 20_000)
    assert grown.wrong == 0
    assert grown.growth_mib < NOISE_MIB


def test_a_server_answers_404_and_its_metrics_get_no_labels(tmp_path: Path) -> None:
    served = ask_server(tmp_path, 2_000)
    assert served.grown.wrong == 0
    assert served.series_after == served.series_before
