"""Turns of flows: in rotation, a busy flow passed over, each key once."""

from manylora.engine.grammars.turns import Turns
from manylora.ids import Flow

A, B, C = Flow("a"), Flow("b"), Flow("c")


def test_flows_take_turns_whatever_each_has() -> None:
    turns: Turns[int] = Turns()
    for key in range(4):
        turns.add(A, key)
    turns.add(B, 10)
    turns.add(C, 20)
    taken = [turns.take(()) for _ in range(7)]
    assert taken == [(A, 0), (B, 10), (C, 20), (A, 1), (A, 2), (A, 3), None]


def test_a_busy_flow_is_passed_over_and_keeps_its_place() -> None:
    turns: Turns[int] = Turns()
    turns.add(A, 1)
    turns.add(B, 2)
    assert turns.take({A}) == (B, 2)
    assert turns.take({A}) is None
    assert turns.take(()) == (A, 1)


def test_a_key_waits_once_and_leaves() -> None:
    turns: Turns[int] = Turns()
    for flow in (A, A, B):
        turns.add(flow, 1)
    assert len(turns) == 1
    turns.remove(A, 1)
    turns.remove(A, 1)
    assert turns.take(()) == (B, 1)
    assert len(turns) == 0
