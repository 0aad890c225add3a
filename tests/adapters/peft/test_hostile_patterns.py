"""Pattern tables of a config: matched as PEFT matches them, or refused because they could take too long."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.adapters.peft.patterns import PatternRefused, Patterns


@settings(max_examples=3 * settings().max_examples)
@given(key=st.text(alphabet="aq.*+?()|[]{}\\^$:-=!19,<P>", max_size=24))
def test_any_pattern_is_matched_in_time_or_refused(key: str) -> None:
    try:
        patterns = Patterns([key])
    except PatternRefused:
        return
    patterns.first_match("a" * 20 + "." + "q" * 12)


ENDS = st.sampled_from(["", "$", "x"])
MODULES = [f"model.layers.{layer}.{path}" for layer in (0, 1, 11) for path in ("self_attn.q_proj", "mlp.up_proj")]
KEYS = st.one_of(
    st.builds(lambda module, start, end: module[start:] + end, st.sampled_from(MODULES), st.integers(0, 20), ENDS),
    st.builds(lambda module, at: f"{module[:at]}.{module[at + 1 :]}", st.sampled_from(MODULES), st.integers(0, 20)),
    st.builds(lambda module, start: "^" + module[start:], st.sampled_from(MODULES), st.integers(0, 6)),
    st.builds(lambda module: module[6:].replace(".", r"\."), st.sampled_from(MODULES)),
    st.sampled_from([".*q_proj", "layers.1.*", "(q|up)_proj", r"layers\.\d+\.mlp\.up_proj", "......", "q.proj"]),
)


@settings(max_examples=3 * settings().max_examples)
@given(keys=st.lists(KEYS, max_size=8, unique=True))
def test_a_table_is_matched_as_peft_matches_it(keys: list[str]) -> None:
    patterns = Patterns([key for key in keys if key])
    for module in MODULES:
        expected = next((key for key in keys if key and re.match(rf"(.*\.)?({key})$", module)), None)
        assert patterns.first_match(module) == expected


def test_a_key_for_each_module_of_a_large_base_is_taken() -> None:
    modules = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(126) for name in "qkvo"]
    patterns = Patterns(modules)
    assert [patterns.first_match(module) for module in modules] == modules


@pytest.mark.parametrize(
    "keys",
    [
        [f"x{{1,60000}}{number}" for number in range(300)],
        [f"(x|y)*{number}" for number in range(40)],
        ["." * (number % 250 + 1) + "a" * (number // 250) for number in range(4000)],
        [("." * before) + "q" + ("." * after) for before in range(20) for after in range(20)],
        [f".*.*{number}" for number in range(9)],
    ],
)
def test_a_table_that_is_too_much_together_is_refused(keys: list[str]) -> None:
    with pytest.raises(PatternRefused):
        Patterns(keys)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)+$",
        "((a*)*)*b",
        "(.*)(.*)(.*)(.*)b",
        "(a|a)" * 20 + "b",
        r"(a)\1+",
        "(?=a)a",
        "a{1,9}{1,9}",
        "a?" * 20 + "a" * 20,
    ],
)
def test_a_catastrophic_pattern_is_refused(key: str) -> None:
    with pytest.raises(PatternRefused):
        Patterns([key])
