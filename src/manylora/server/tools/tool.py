"""The tools of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the caller offers.

    parameters  the JSON schema of the object of arguments; None: there are none
    given       the tool as the request has it, for the chat template
    """

    name: str
    parameters: Mapping[str, Any] | None
    given: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of the arguments by name, where the schema lists them."""
        found = (self.parameters or {}).get("properties")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSet:
    """The tools of a request, and how they may be called.

    shown        the tools that the chat template shows
    tools        those that the reply may call
    is_required  whether the reply is calls alone
    is_parallel  whether it may have several calls
    is_older     whether the caller reads calls in the older form, `function_call`
    """

    shown: tuple[Tool, ...]
    tools: tuple[Tool, ...]
    is_required: bool = False
    is_parallel: bool = True
    is_older: bool = False
