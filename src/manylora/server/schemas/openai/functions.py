"""The older form of tools in the body of POST /v1/chat/completions: `functions`, `function_call` and their messages."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, cast

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter, ToolsRefused
from manylora.server.schemas.body import Read
from manylora.server.schemas.openai.tools import (
    FunctionDefinition,
    ToolChoice,
    function_name,
    object_in,
    shown_name,
    tools_of,
)
from manylora.server.schemas.readers import array
from manylora.server.tools.tool import Tool
from manylora.system.printable import quoted

FUNCTION_ROLE = "function"
"""The role of a message with the result of a call in the older form."""


def read_functions(value: object, info: ValidationInfo) -> tuple[Tool, ...]:
    if info.data.get("tools"):
        raise ToolsRefused("`functions` and `tools` cannot both be set", parameter="functions")
    functions = array("functions", value)
    return tools_of(functions, lambda each, index: object_in(each, f"functions[{index}]", "functions"), "functions")


def read_function_call(value: object, info: ValidationInfo) -> ToolChoice:
    """Read `function_call`: `none`, `auto`, or an object with the name of a function."""
    if value in ("none", "auto"):
        return ToolChoice(is_none=value == "none")
    if isinstance(value, str):
        raise ToolsRefused("`function_call` must be none, auto or an object with a `name`", parameter="function_call")
    name = function_name(object_in(value, "function_call", "function_call"), "function_call", "function_call")
    if name not in {tool.name for tool in cast("tuple[Tool, ...]", info.data.get("functions", ()))}:
        raise ToolsRefused(f"`function_call` names {quoted(name)}, which `functions` lacks", parameter="function_call")
    return ToolChoice(is_required=True, names=frozenset({name}))


class Called(NamedTuple):
    """The calls of a conversation so far.

    names   the name of the function of each call, by its id
    latest  the id of the latest call in the older form, by the name of its function
    """

    names: dict[str, str]
    latest: dict[str, str]


def call_of(given: object, where: str, called: Called) -> list[dict[str, Any]]:
    """Return a message's `function_call` as a list of one call with an id, and note it.

    The id has nine letters and digits, which Mistral's templates ask for.
    """
    place = f"{where}.function_call"
    call = object_in(given, place, "messages")
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str) or call.keys() > {"name", "arguments"}:
        raise InvalidParameter(f"`{place}`: expected `name` and `arguments` as strings", parameter="messages")
    call_id = f"call{len(called.names):05d}"
    called.names[call_id] = name
    called.latest[name] = call_id
    return [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}]


def result_of(name: object, where: str, called: Called) -> Mapping[str, str]:
    """Return the fields of a message of `tool` for one of `function`, which names the function alone."""
    if not isinstance(name, str) or name not in called.latest:
        raise InvalidParameter(
            f"`{where}.name` must be that of a `function_call` in an earlier message. Given: {shown_name(name)}",
            parameter="messages",
        )
    return {"tool_call_id": called.latest[name], "name": name}


Functions = Annotated[
    tuple[Tool, ...],
    Read(read_functions, shape=list[FunctionDefinition] | None),
    Field(description="The older form of `tools`: the reply has at most one `function_call`."),
]
FunctionChoice = Annotated[
    ToolChoice,
    Read(read_function_call, shape=str | dict[str, Any] | None),
    Field(description="`none`, `auto`, or the `name` of a function."),
]
