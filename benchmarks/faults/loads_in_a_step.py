"""`manylora` with loads done inside the engine's steps, as servers do that load where they decode: what that costs.

PYTHONPATH=$PWD/src:$PWD python -m benchmarks.faults.loads_in_a_step serve …
"""

from unittest.mock import patch

from manylora.adapters.ingest.process import InlineIngest
from manylora.cli import main
from manylora.wiring import engine as build

FACTORY = "benchmarks.faults.loads_in_a_step:build_engine"


def build_engine(*arguments: object, **named: object) -> object:
    """As `manylora.wiring.engine.build_engine`, with a store that does each load to its end when it begins it."""
    with patch("manylora.wiring.adapter_store.ProcessIngest", InlineIngest):
        return build.build_engine(*arguments, **named)  # type: ignore[arg-type]


if __name__ == "__main__":
    with patch("manylora.cli.settings.FACTORY", FACTORY):
        main()
