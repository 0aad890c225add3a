"""The rows of the table of operations: a method declared with `@operation` is one, its signature says the rest.

A back end may generate from a row whatever it needs to call its own function of that name.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., object])

_MARK = "__operation__"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRule:
    """The rows that an operation returns, by rules on its arguments. A rule names the arguments that it reads.

    width          columns of new rows; None: the operation makes no rows
    changed        name of the argument that the operation changes in place and returns
    are_sampled    the new rows are those that are sampled from; else they are as many as the first argument's rows
    copies         new rows for each row of the step; None: as many as the first argument's rows
    outlive        the caller keeps the new rows, the logits, after the next step has begun
    refusal        text of the IndexError for an input that the operation refuses; None: it refuses none
    is_collective  all ranks of a model compute it together (`kernels/collectives.py`); native code has no function of
                   its name, and a model of one rank leaves it out
    """

    width: Callable[..., int] | None = None
    changed: str | None = None
    are_sampled: bool = False
    copies: Callable[..., int] | None = None
    outlive: bool = False
    refusal: Callable[..., str] | None = None
    is_collective: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table: the name of the function, its parameters and their annotations, and what it returns."""

    name: str
    parameters: Mapping[str, object]
    result: ResultRule

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of a call by parameter, in the order of the parameters. Raises: TypeError."""
        kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.parameters]
        return inspect.Signature(kinds).bind(*args, **kwargs).arguments


def operation(
    *,
    width: Callable[..., int] | None = None,
    changed: str | None = None,
    are_sampled: bool = False,
    copies: Callable[..., int] | None = None,
    outlive: bool = False,
    refusal: Callable[..., str] | None = None,
    is_collective: bool = False,
) -> Callable[[Method], Method]:
    """Make a method of `Operations` a row of the table. The arguments are those of `ResultRule`."""
    rule = ResultRule(
        width=width,
        changed=changed,
        are_sampled=are_sampled,
        copies=copies,
        outlive=outlive,
        refusal=refusal,
        is_collective=is_collective,
    )

    def mark(method: Method) -> Method:
        setattr(method, _MARK, rule)
        return method

    return mark


def operations_of(protocol: type) -> tuple[Operation, ...]:
    """Return the rows that a protocol and its bases declare, in order, the bases' first."""
    return tuple(
        _row(name, method)
        for owner in reversed(protocol.__mro__)
        for name, method in vars(owner).items()
        if hasattr(method, _MARK)
    )


def apply_rule(rule: Callable[..., Any], arguments: Mapping[str, object]) -> Any:
    """Return the value of a rule of `ResultRule` for these arguments."""
    return rule(**{name: arguments[name] for name in inspect.signature(rule).parameters})


def _row(name: str, method: Callable[..., object]) -> Operation:
    hints = typing.get_type_hints(method, include_extras=True)
    hints.pop("return")
    return Operation(name, hints, getattr(method, _MARK))
