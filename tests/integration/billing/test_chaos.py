"""A short run of the benchmark that kills everything: the ledger holds what the engine counted, to the token."""

from pathlib import Path

from manylora.bench.faults.chaos import run_chaos
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import make_base


def test_kills_at_random_moments_lose_and_double_no_token(tmp_path: Path) -> None:
    make_base(tmp_path / "base", vocab_size=330)
    save_byte_level(tmp_path / "base")
    settings = ("adapters.hub_endpoint=", f"adapters.roots={tmp_path}")
    found = run_chaos(tmp_path, str(tmp_path / "base"), kills=3, seed=3, vocab=330, busy=2, settings=settings)
    assert found.difference == 0
    assert found.unequal == 0
    assert found.kills == {"edge": 1, "engine": 1, "control": 1}
    assert 0 < found.received_tokens <= found.charged_tokens <= found.ledger_tokens
    assert found.requests > 20
