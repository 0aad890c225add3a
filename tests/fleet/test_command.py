"""`manylora engine` and `manylora serve` with its address: a real base and a real adapter over TCP."""

import re
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from peft import LoraConfig

from tests.fleet.fleet_house import secret_file
from tests.forks import COMMAND, forks
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import STOP_WAIT_S, make_cache, running_server
from tests.support.tiny import BYTE_LEVEL_VOCAB, make_adapter, make_base
from tests.support.waiting import PATIENCE_S, wait_for

BODY: dict[str, Any] = {"inputs": "hello", "parameters": {"max_new_tokens": 8, "ignore_eos_token": True}}


@pytest.mark.long  # two servers, one of them with a model
def test_a_server_without_weights_serves_the_base_and_the_adapters_of_an_engine(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(base.directory)
    make_adapter(base, tmp_path / "adapters" / "tone", LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    cache = make_cache(tmp_path / "cache")
    own = [f"--set=fleet.secret_file={secret_file(tmp_path)}", f"--set=model.cache_dir={cache}"]
    words = [
        "engine",
        f"--base={base.directory}",
        f"--adapter-root={tmp_path / 'adapters'}",
        "--listen=127.0.0.1:0",
        *own,
    ]
    printed = tmp_path / "engine.log"
    engine = forks().start(COMMAND, words, output=printed, errors=printed)
    try:
        wait_for(lambda: "is hosted at" in printed.read_text() or engine.poll() is not None, PATIENCE_S)
        found = re.search(r"is hosted at (\S+)", printed.read_text())
        assert found, printed.read_text()
        with running_server(tmp_path / "edge.log", f"--set=fleet.engines={found[1]}", *own) as url:
            plain = httpx2.post(f"{url}/generate", json=BODY, timeout=PATIENCE_S).json()
            adapted = {**BODY, "parameters": {**BODY["parameters"], "adapter_id": "tone"}}
            tuned = httpx2.post(f"{url}/generate", json=adapted, timeout=PATIENCE_S).json()
            assert plain["generated_text"] != tuned["generated_text"], (plain, tuned)
            assert "connect" not in str(plain)
            listed = httpx2.get(f"{url}/v1/adapters", timeout=PATIENCE_S).json()
            assert "tone" in str(listed)
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(STOP_WAIT_S) == 0, printed.read_text()
    finally:
        engine.kill()
