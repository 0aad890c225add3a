"""Settings and flags under an older name: in each place, with a warning, and never beside the new one."""

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora.cli.settings import configuration
from manylora.config.renames import SETTINGS, VALUES, Renamed, current_words
from manylora.config.settings import declarations, leaves, load_config
from manylora.errors import ConfigInvalid

OLD, NEW = "server.cors_allow_origin", "server.cors_allow_origins"
APP = "https://app.example"
FLAGS = (Renamed(old="--max-len", new="--max-model-len", gone_in="0.3"),)
WARNING = f"{OLD} is now {NEW}; the older name works until release 0.3"


def test_a_file_may_use_an_older_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text(f'[server]\ncors_allow_origin = "{APP}"\n')
    assert load_config(file, environ={}).server.cors_allow_origins == (APP,)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, WARNING)]


def test_the_environment_may_use_an_older_name(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(environ={"MANYLORA_SERVER_CORS_ALLOW_ORIGIN": "*"})
    assert config.server.cors_allow_origins == ("*",)
    assert caplog.messages == [WARNING]


def test_an_assignment_may_use_an_older_name(caplog: pytest.LogCaptureFixture) -> None:
    assert configuration(None, [f"{OLD}={APP}"], {}).server.cors_allow_origins == (APP,)
    assert caplog.messages == [WARNING]


def test_an_older_name_in_several_places_gives_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text('[server]\ncors_allow_origin = "https://a.example"\n')
    config = load_config(file, {OLD: APP}, {"MANYLORA_SERVER_CORS_ALLOW_ORIGIN": "*"})
    assert config.server.cors_allow_origins == (APP,)
    assert caplog.messages == [WARNING]


@pytest.mark.parametrize("place", ["file", "environment", "flag"])
def test_both_names_at_once_are_refused(tmp_path: Path, place: str) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text(f"[server]\n{'cors_allow_origins = []' if place == 'file' else 'port = 1'}\n")
    environ = {"MANYLORA_SERVER_CORS_ALLOW_ORIGINS": APP} if place == "environment" else {}
    with pytest.raises(ConfigInvalid, match=r"older name of server\.cors_allow_origins: give one of them"):
        load_config(file, {OLD: "*"} | ({NEW: (APP,)} if place == "flag" else {}), environ)


def test_an_older_value_is_checked_like_the_new_one() -> None:
    with pytest.raises(ConfigInvalid, match="an Origin is https://name"):
        load_config(flags={OLD: "app.example/"}, environ={})


def test_every_renamed_setting_leads_to_one_that_exists() -> None:
    known = leaves(load_config(environ={}))
    assert all(entry.new in known and entry.old not in known for entry in SETTINGS)


@pytest.mark.parametrize("place", ["file", "environment", "flag"])
def test_a_replaced_value_works_with_a_warning(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text('[model]\nkernels = "onednn"\n' if place == "file" else "")
    environ = {"MANYLORA_MODEL_KERNELS": "onednn"} if place == "environment" else {}
    config = load_config(file, {"model.kernels": "onednn"} if place == "flag" else {}, environ)
    assert config.model.kernels == "native-bf16"
    assert caplog.messages == [
        "model.kernels=onednn is replaced by native-bf16; the older value works until release 0.3"
    ]


def test_every_replaced_value_leads_to_one_that_may_be_chosen() -> None:
    choices = {key: declared.choices for key, declared in declarations().items()}
    assert all(entry.new in choices[entry.key] and entry.old not in choices[entry.key] for entry in VALUES)


def test_a_flag_may_have_an_older_name(caplog: pytest.LogCaptureFixture) -> None:
    assert current_words(["serve", "--max-len", "9"], FLAGS) == ["serve", "--max-model-len", "9"]
    assert current_words(["serve", "--max-len=9"], FLAGS) == ["serve", "--max-model-len=9"]
    assert current_words(["generate", "--", "--max-len"], FLAGS) == ["generate", "--", "--max-len"]
    assert caplog.messages == ["--max-len is now --max-model-len; the older name works until release 0.3"] * 2
    with pytest.raises(ConfigInvalid, match="give one of them"):
        current_words(["serve", "--max-len=9", "--max-model-len", "8"], FLAGS)


def test_a_command_says_so_in_one_line(tmp_path: Path) -> None:
    from manylora.cli import app

    words = ["control", "--set", f"{OLD}=*", "--set", f"control.dir={tmp_path}"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigInvalid)  # for its edge token is missing, and for nothing else
    assert "control.edge_token" in result.exception.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.allowed_hosts", "http://a"),
        ("server.allowed_hosts", "a:80"),
        ("server.allowed_hosts", ""),
        ("server.cors_allow_origins", "app.example"),
        ("server.cors_allow_origins", "https://app.example/"),
        ("server.cors_allow_origins", "null"),
        ("server.trusted_proxies", "10.0.0.0/40"),
        ("server.trusted_proxies", "proxy.example"),
        ("server.public_url", "llm.example"),
    ],
)
def test_a_wrong_rule_is_refused_by_its_name(key: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=key):
        load_config(flags={key: value if key.endswith("url") else (value,)}, environ={})
