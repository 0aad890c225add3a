"""The installation of the peers: which of them a command line asks for."""

from pathlib import Path

import pytest
from benchmarks.peers import install


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [([], ["vllm", "llama"]), (["vllm"], ["vllm"]), (["llama"], ["llama"]), (["both"], ["vllm", "llama"])],
)
def test_the_command_installs_the_peers_that_it_names_and_both_without_a_name(
    arguments: list[str], folders: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed: list[Path] = []
    monkeypatch.setattr(install, "install_vllm", installed.append)
    monkeypatch.setattr(install, "install_llama", installed.append)
    monkeypatch.setattr("sys.argv", ["install.py", "--into", str(tmp_path), *arguments])
    install.main()
    assert installed == [tmp_path / folder for folder in folders]
