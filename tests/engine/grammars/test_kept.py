"""Compiled grammars that flows hold: within the quota of each, for a time, and none that is in use goes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.clock import ManualClock
from manylora.engine.grammars.kept import TRIM_S, GrammarQuota, KeptGrammars
from manylora.ids import Flow

QUOTA = GrammarQuota(count=3, num_bytes=100, ttl_s=50.0)
A, B, C = Flow("a"), Flow("b"), Flow("c")
FLOWS = (A, B, C)


def kept_of(quota: GrammarQuota = QUOTA) -> tuple[KeptGrammars[str, str], ManualClock]:
    clock = ManualClock()
    return KeptGrammars(quota, clock), clock


def test_a_flow_over_its_count_loses_the_grammar_it_used_longest_ago() -> None:
    kept, _ = kept_of()
    for key in "xyz":
        kept.add(key, key, 1, [A])
    assert kept.use("x", A) == "x"
    kept.add("w", "w", 1, [A])
    assert kept.held(A) == ("z", "x", "w")
    assert "y" not in kept
    assert kept.dropped == {"quota": 1}


def test_a_flow_over_its_memory_loses_the_oldest() -> None:
    kept, _ = kept_of()
    for key in "xy":
        kept.add(key, key, 60, [A])
    assert kept.held(A) == ("y",)
    assert kept.num_bytes == 60
    kept.add("z", "z", 101, [A])
    assert len(kept) == 0, "one beyond the whole quota is kept for its use alone"


def test_a_flood_of_one_flow_takes_nothing_from_another() -> None:
    kept, _ = kept_of()
    kept.add("x", "x", 50, [A])
    for number in range(100):
        kept.add(f"flood {number}", "", 30, [B])
    assert kept.held(A) == ("x",)
    assert kept.held(B) == ("flood 97", "flood 98", "flood 99")


def test_a_grammar_of_two_flows_counts_for_each_and_goes_with_the_last() -> None:
    kept, _ = kept_of()
    kept.add("x", "x", 60, [A])
    assert kept.use("x", B) == "x"
    assert kept.num_bytes == 60
    kept.add("y", "y", 60, [B])
    assert kept.held(B) == ("y",)
    assert kept.held(A) == ("x",)
    kept.add("z", "z", 60, [A])
    assert "x" not in kept
    assert kept.num_bytes == 120


def test_what_is_in_use_stays_and_fills_the_quota() -> None:
    kept, clock = kept_of()
    for key in "xyz":
        kept.begin(key, A)
        kept.add(key, key, 1, [A])
    assert kept.is_full(A)
    kept.add("w", "w", 1, [B])
    kept.begin("w", A)
    assert kept.use("w", A) is None, "it waits until one of the others has ended"
    clock.advance(QUOTA.ttl_s + TRIM_S)
    kept.trim_old()
    assert kept.held(A) == ("x", "y", "z")
    assert kept.held(B) == ()
    kept.end("x", A)
    kept.add("w", "w", 1, [B])
    assert kept.use("w", A) == "w"
    assert kept.held(A) == ("y", "z", "w")


def test_a_grammar_without_a_use_goes_after_its_time() -> None:
    kept, clock = kept_of()
    kept.add("x", "x", 1, [A, B])
    clock.advance(QUOTA.ttl_s - 1)
    kept.trim_old()
    assert kept.use("x", B) == "x"
    clock.advance(TRIM_S + 1)
    kept.trim_old()
    assert (kept.held(A), kept.held(B)) == ((), ("x",))
    clock.advance(QUOTA.ttl_s)
    kept.trim_old()
    assert len(kept) == 0
    assert kept.dropped == {"age": 2}


def test_the_grammars_of_a_closed_flow_go_at_once_and_those_in_use_at_the_end_of_the_use() -> None:
    kept, _ = kept_of()
    kept.begin("x", A)
    kept.add("x", "x", 1, [A])
    kept.add("y", "y", 1, [A, B])
    kept.add("z", "z", 1, [A])
    kept.close_flow(A)
    assert (kept.held(A), kept.held(B)) == (("x",), ("y",))
    assert (len(kept), kept.num_bytes) == (2, 2)
    assert kept.use("x", A) == "x", "its request goes on"
    kept.end("x", A)
    assert (kept.held(A), kept.held(B)) == ((), ("y",))
    kept.add("w", "w", 1, [A])
    assert kept.held(A) == (), "one whose compilation ends later"
    assert kept.dropped == {"closed": 4}


def test_all_flows_together_have_a_limit_that_the_largest_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manylora.engine.grammars.kept.MAX_KEPT_BYTES", 150)
    kept, _ = kept_of()
    kept.add("small", "", 50, [A])
    for key, num_bytes in (("x", 50), ("y", 45)):
        kept.add(key, "", num_bytes, [B])
    kept.add("z", "", 20, [C])
    assert (kept.held(A), kept.held(B), kept.held(C)) == (("small",), ("y",), ("z",))
    assert kept.dropped == {"room": 1}
    kept.begin("y", B)
    kept.begin("w", B)
    kept.add("w", "", 90, [B])
    assert kept.held(A) == ("small",), "those in use of another take nothing from it"


KEYS = "uvwxyz"
SIZES = {key: 7 * index + 5 for index, key in enumerate(KEYS)}
ACTS = st.tuples(
    st.sampled_from([*["add", "use", "begin"] * 5, *["end", "wait", "trim"] * 2, "close"]),
    st.sampled_from(KEYS),
    st.sampled_from(FLOWS[:2]),
)


@given(st.lists(ACTS, min_size=20, max_size=80))
def test_no_flow_holds_more_than_its_quota_and_what_it_uses(acts: list[tuple[str, str, Flow]]) -> None:
    kept, clock = kept_of()
    uses: Counter[tuple[str, Flow]] = Counter()
    closed: set[Flow] = set()

    def used(flow: Flow) -> list[str]:
        return [key for key in kept.held(flow) if uses[key, flow]]

    for act, key, flow in acts:
        before = {each: used(each) for each in FLOWS}
        if act == "add" and key not in kept:
            kept.add(key, key, SIZES[key], [flow])
        elif act == "use":
            was_full, was_held = kept.is_full(flow), key in kept.held(flow)
            assert (kept.use(key, flow) is not None) == (key in kept and (was_held or not was_full))
        elif act == "begin":
            kept.begin(key, flow)
            uses[key, flow] += 1
        elif act == "end" and uses[key, flow]:
            uses[key, flow] -= 1
            kept.end(key, flow)
        elif act == "close":
            kept.close_flow(flow)
            closed.add(flow)
        elif act == "wait":
            clock.advance(30.0)
        else:
            kept.trim_old()
        for each in FLOWS:
            held, in_use = kept.held(each), used(each)
            ended = {key} if (act, each) == ("end", flow) else set()
            assert {*before[each]} <= {*in_use} | ended, "a grammar in use is gone"
            quota = (0, 0) if each in closed else (QUOTA.count, QUOTA.num_bytes)
            assert len(held) <= max(quota[0], len(in_use))
            assert sum(SIZES[one] for one in held) <= max(quota[1], sum(SIZES[one] for one in in_use))
        assert kept.num_bytes == sum(SIZES[one] for one in {one for each in FLOWS for one in kept.held(each)})
    for (key, flow), count in list(uses.items()):
        for _ in range(count):
            kept.end(key, flow)
    clock.advance(QUOTA.ttl_s + TRIM_S)
    kept.trim_old()
    assert (len(kept), kept.num_bytes) == (0, 0)
