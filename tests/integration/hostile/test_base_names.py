"""An adapter's folder that has a name of the served base: the server says so and does not start."""

import subprocess
import sys
from pathlib import Path

import pytest

from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid
from manylora.wiring.engine import build_engine
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import make_base

PARTS = ("adapter_config.json", "adapter_model.safetensors")


def lay_out(folder: Path, name: str) -> tuple[Path, Path]:
    """A base's directory, which is not read that far, and a root with one adapter."""
    base, adapter = folder / "Tiny-Base", folder / "root" / name
    base.mkdir()
    (base / "config.json").write_text("{}", encoding="utf-8")
    adapter.mkdir(parents=True)
    for part in PARTS:
        (adapter / part).write_text("{}", encoding="utf-8")
    return base, folder / "root"


@pytest.mark.parametrize("name", ["Tiny-Base", "tiny-base"])
def test_a_folder_with_the_bases_name_is_refused_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    base, root = lay_out(tmp_path, name)
    config = load_config(flags={"model.base": str(base), "adapters.roots": (str(root),)}, environ={})
    for part in (None, PARTS[1]):  # an unfit one has its name, too
        if part is not None:
            (root / name / part).unlink()
        with pytest.raises(ConfigInvalid, match=f"adapter folder '{name}' below .*rename the folder"):
            build_engine(config, lambda line: None)


@pytest.mark.long
def test_the_command_line_says_so_at_its_end(tmp_path: Path) -> None:
    base, root = lay_out(tmp_path, "tiny-base")
    make_base(base, vocab_size=330)  # the command looks at the base's files first
    save_byte_level(base)
    command = [
        sys.executable,
        "-m",
        "manylora",
        "serve",
        "--port",
        "0",
        "--base",
        str(base),
        "--adapter-root",
        str(root),
    ]
    own = [f"--set={group}.dir={tmp_path / group}" for group in ("control", "metering")]
    done = subprocess.run([*command, *own], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("manylora: the adapter folder 'tiny-base' below ")
