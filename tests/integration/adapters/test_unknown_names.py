"""Names that do not exist (figure R2 in small): each is answered, and nothing of them is kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from manylora.adapters.store.tracked import MAX_TRACKED
from manylora.bench.faults.unknown_names import WARM_UP, ask_server

NUM_NAMES = 12_000
NOISE_MIB = 4.0
"""What the allocator may take meanwhile; a kilobyte for each of the names below would be more."""


@pytest.mark.long  # nine seconds; `tests/adapters/store` holds the bound in every run
def test_the_memory_of_an_engine_stays_flat(tmp_path: Path) -> None:
    """In a process of its own, whose memory no other test has taken and given back."""
    assert WARM_UP > MAX_TRACKED
    code = (
        "import sys; from pathlib import Path; from manylora.bench.faults.unknown_names import ask_engine; "
        "grown = ask_engine(Path(sys.argv[1]), int(sys.argv[2])); print(grown.wrong, grown.growth_mib)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(NUM_NAMES)], stdout=subprocess.PIPE, text=True, check=True
    )
    wrong, growth_mib = run.stdout.split()
    assert int(wrong) == 0
    assert float(growth_mib) < NOISE_MIB


@pytest.mark.long  # fifteen seconds
def test_a_server_answers_404_and_its_metrics_get_no_labels(tmp_path: Path) -> None:
    served = ask_server(tmp_path, 300, warm_up=100)  # the memory of many is the engine's, above
    assert served.grown.wrong == 0
    assert served.series_after == served.series_before
