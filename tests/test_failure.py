"""Errors cross a boundary between processes as their class, their message and the field they name."""

import json

import msgspec
import pytest

from manylora import errors
from manylora.errors import EngineFault, InvalidParameter, ManyloraError
from manylora.failure import Failure


def every_error() -> list[type[ManyloraError]]:
    found = [ManyloraError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__.startswith(f"{errors.__name__}.")]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_is_raised_again_as_it_was(kind: type[ManyloraError]) -> None:
    failure = Failure.of(kind("the reason", parameter="seed"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure) == failure
    assert Failure.from_json(json.loads(json.dumps({"number": 3, **failure.to_json()}))) == failure
    raised = failure.to_error()
    assert (type(raised), raised.message, raised.parameter) == (kind, "the reason", "seed")


@pytest.mark.parametrize("name", ["Unheard", "ErrorRow", "SERVER", "__name__"])
def test_a_name_that_is_no_error_of_ours_is_a_fault_of_the_engine(name: str) -> None:
    assert type(Failure(error=name, message="x").to_error()) is EngineFault


def test_a_failure_tells_its_kind_without_an_error() -> None:
    assert Failure.of(InvalidParameter("no")).kind is InvalidParameter
