"""Settings: where they come from, which wins, and how a wrong one is told."""

from pathlib import Path

import pytest

from manylora.cli.settings import with_adapter_roots
from manylora.config import load_config
from manylora.errors import ConfigInvalid


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text("[server]\nport = 1\nhost = '0.0.0.0'\n[engine]\nmax_running = 3\n", encoding="utf-8")
    config = load_config(file, {"server.port": 3}, {"MANYLORA_SERVER_PORT": "2", "MANYLORA_ENGINE_MAX_RUNNING": "4"})
    assert (config.server.port, config.server.host, config.engine.max_running) == (3, "0.0.0.0", 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"server.port": 70000}, "server.port must be at most 65535. Given: 70000"),
        ({"server.port": -1}, "server.port must be at least 0. Given: -1"),
        ({"engine.max_model_len": 1}, "engine.max_model_len must be 0 or at least 2. Given: 1"),
        ({"model.kernels": "fast"}, "model.kernels must be one of auto, native, onednn, reference. Given: fast"),
        ({"server.portt": 1}, "unknown setting: server.portt"),
        ({"server.port": "x"}, "server.port: expected int, given 'x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(flags: dict[str, str | int], message: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        load_config(None, flags, {})
    assert refused.value.message == message


def test_an_adapter_root_must_be_a_directory_above_adapters(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "adapter_config.json").write_text("{}", encoding="utf-8")
    for root, message in (
        (tmp_path / "none", "none is not a directory"),
        (tmp_path / "one", "is an adapter itself; give the directory above it"),
    ):
        with pytest.raises(ConfigInvalid, match=message):
            with_adapter_roots(load_config(None, {"adapters.roots": (str(root),)}, {}))
    assert with_adapter_roots(load_config(None, {"adapters.roots": (str(tmp_path),)}, {})).adapters.roots
