"""The served bases as the control plane knows them."""

import json
from pathlib import Path

import pytest

from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.control.bases import base_names, served_bases
from manylora.models.fetch.catalog import describe, pulled_dir
from manylora.wiring.bases import server_bases

REPOSITORY = "mistralai/Mistral-7B-Instruct-v0.1"


@pytest.mark.parametrize("name", [REPOSITORY, "Mistral-7B-Instruct-v0.1", "mistral-7b-instruct", "MISTRAL-7B-INSTRUCT"])
def test_the_window_of_a_base_has_each_name_of_that_base(tmp_path: Path, name: str) -> None:
    known = describe(REPOSITORY, tmp_path).known
    assert known is not None
    folder = pulled_dir(REPOSITORY, tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(known.config))
    flags: dict[str, Setting] = {
        "model.base": REPOSITORY,
        "model.cache_dir": str(tmp_path),
        "model.max_model_len_of": (f"{name}=4096",),
    }
    config = load_config(flags=flags, environ={})
    [served], [run] = served_bases(config), server_bases(config)
    assert (served.window, run.config.engine.max_model_len) == (4096, 4096)
    assert name.lower() in base_names(config)
