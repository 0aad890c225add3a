"""What the command line makes of settings."""

from pathlib import Path

import pytest

from manylora.cli.settings import with_adapter_roots
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid


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
