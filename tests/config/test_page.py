"""The page of settings is the declarations', and the declarations are whole."""

import dataclasses

import pytest

from manylora.config.declaration import setting
from manylora.config.page import settings_page
from manylora.config.settings import Config, declarations, leaves, load_config
from manylora.errors import ConfigInvalid
from tests.support.paths import ROOT


def test_the_page_is_written_from_the_declarations() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `make pages`"


def test_every_setting_is_declared_with_a_text_of_its_own() -> None:
    declared = declarations()
    assert list(declared) == list(leaves(Config()))
    texts = [each.text for each in declared.values()]
    assert all(text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("key", [key for key, each in declarations().items() if each.low is not None])
def test_a_number_outside_its_bounds_is_refused_by_its_name(key: str) -> None:
    declared = declarations()[key]
    assert declared.low is not None
    is_whole = isinstance(leaves(Config())[key], int)
    with pytest.raises(ConfigInvalid, match=f"{key} must be at least"):
        load_config(flags={key: int(declared.low - 1) if is_whole else declared.low - 1.0}, environ={})
    if declared.high is not None:
        with pytest.raises(ConfigInvalid, match=f"{key} must be at most"):
            load_config(flags={key: int(declared.high + 1) if is_whole else declared.high + 1.0}, environ={})


@pytest.mark.parametrize("key", [key for key, each in declarations().items() if each.choices])
def test_a_text_that_is_no_choice_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"{key} must be one of"):
        load_config(flags={key: "neither"}, environ={})


def test_a_default_stands_within_its_own_bounds() -> None:
    values = {key: value for key, value in leaves(Config()).items() if not isinstance(value, tuple)}
    assert leaves(load_config(flags=values, environ={})) == leaves(Config())


def test_a_declaration_is_a_field_with_its_facts() -> None:
    @dataclasses.dataclass(frozen=True)
    class Group:
        size: int = setting(
            3,
            low=1,
            text="""
            Sequences
            under way.
            """,
        )

    (found,) = dataclasses.fields(Group)
    assert found.metadata["setting"].text == "Sequences\nunder way."
    assert Group().size == 3
