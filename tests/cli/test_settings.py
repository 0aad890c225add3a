"""What the command line makes of settings."""

from pathlib import Path

import pytest

from manylora.cli.settings import ENGINE_SETTINGS, given_base, refuse_engine_settings, with_adapter_roots
from manylora.config.settings import Config, leaves, load_config
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


IGNORED = [f"{group}.{name}" for group, names in ENGINE_SETTINGS.items() for name in names]


def test_settings_of_engines_are_settings_and_the_default_of_each_is_taken() -> None:
    assert set(IGNORED) <= set(leaves(Config()))
    refuse_engine_settings(load_config(None, {}, {}), [], {"model.quantize": None, "model.more_bases": ()})


@pytest.mark.parametrize("name", IGNORED)
def test_a_server_without_engines_of_its_own_refuses_their_settings_by_name(name: str) -> None:
    config = load_config(None, {}, {})
    usual = leaves(config)[name] or "x"
    with pytest.raises(ConfigInvalid, match=rf"^{name}: the engines of fleet.engines have their own"):
        refuse_engine_settings(config, [f"{name}={usual}"], {})
    with pytest.raises(ConfigInvalid, match=rf"^{name}: "):
        refuse_engine_settings(config, [], {name: usual})


def test_a_file_or_a_variable_gives_a_setting_of_engines_too() -> None:
    config = load_config(None, {}, {"MANYLORA_MODEL_QUANTIZE": "int8", "MANYLORA_ENGINE_MAX_RUNNING": "3"})
    with pytest.raises(ConfigInvalid, match=r"^model.quantize, engine.max_running: "):
        refuse_engine_settings(config, [], {})


@pytest.mark.parametrize(
    ("base", "short"),
    [
        (None, ""),
        ("Mistral-7B-Instruct", "mistral-7b-instruct"),
        ("org/Some-Base", "some-base"),
        ("/models/Own/", "own"),
        ("/models/Own.gguf", "own"),
    ],
)
def test_the_base_that_engines_must_have_is_the_given_one(base: str | None, short: str) -> None:
    config = load_config(None, {} if base is None else {"model.base": base}, {})
    assert given_base(config, [], {"model.base": base}) == short
