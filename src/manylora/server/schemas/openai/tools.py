"""The tools in the body of POST /v1/chat/completions, and the choice among them."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, cast

from pydantic import Field, ValidationInfo

from manylora.errors import ToolsRefused
from manylora.server.schemas.body import Body, Json, Read, kind_of
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.shared import known_at_top
from manylora.server.schemas.readers import Text, array
from manylora.server.tools.tool import Tool
from manylora.system.printable import quoted

MAX_TOOLS = 128
"""OpenAI's own limit."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class FunctionDefinition(Body):
    """The function of a tool."""

    rules: ClassVar[FieldRules] = FieldRules(hints={"schema": "use `parameters`"}, elsewhere=known_at_top)
    required: ClassVar[tuple[str, ...]] = ("name",)
    name: Text = None
    description: Text = None
    parameters: Annotated[
        Any,
        Read(lambda value, _: value, shape=dict[str, Any] | None),
        Field(description="The JSON schema of the arguments; none: there are no arguments."),
    ] = None
    strict: Annotated[
        bool | None,
        Read(lambda value, _: value, "boolean"),
        Field(description="Either value holds: the schema is always enforced."),
    ] = None


class ToolDefinition(Body):
    """One tool."""

    rules: ClassVar[FieldRules] = FieldRules(
        refused={"custom": Refusal("tools are functions")},
        unread=frozenset({"cache_control"}),
        elsewhere=lambda: {"`function`": FunctionDefinition.names()},
    )
    required: ClassVar[tuple[str, ...]] = ("type", "function")
    type: Text = None
    function: Annotated[Any, Read(lambda value, _: value, shape=FunctionDefinition)] = None


class ToolChoice(NamedTuple):
    """The choice among the tools.

    is_none      whether the reply has no calls, and the prompt shows no tools
    is_required  whether the reply is calls alone
    names        the tools that may be called; None: all
    """

    is_none: bool = False
    is_required: bool = False
    names: frozenset[str] | None = None


def read_tools(value: object, _: ValidationInfo) -> tuple[Tool, ...]:
    return tools_of(array("tools", value), _tool_function, "tools")


def tools_of(given: Sequence[object], function_in: Callable[[object, int], Json], parameter: str) -> tuple[Tool, ...]:
    """Return the tools of a list. Raises `ToolsRefused`, which names the field `parameter`.

    Args:  function_in  returns the definition of the function in an entry, from the entry and its number
    """
    if len(given) > MAX_TOOLS:
        raise ToolsRefused(
            f"`{parameter}` may have at most {MAX_TOOLS} entries. Given: {len(given)}", parameter=parameter
        )
    place = "tools[{}].function" if parameter == "tools" else parameter + "[{}]"
    tools: dict[str, Tool] = {}
    for index, each in enumerate(given):
        tool = _tool(function_in(each, index), place.format(index), parameter)
        if tool.name in tools:
            told = f"`{parameter}` has two functions with the name {quoted(tool.name)}"
            raise ToolsRefused(told, parameter=parameter)
        tools[tool.name] = tool
    return tuple(tools.values())


def _tool_function(given: object, index: int) -> Json:
    place = f"tools[{index}]"
    tool = applied_fields(object_in(given, place), ToolDefinition.names(), ToolDefinition.rules, place)
    if (kind := tool.get("type", "function")) != "function":
        raise ToolsRefused(f"`{place}.type` must be function. Given: {shown_name(kind)}", parameter="tools")
    return object_in(tool.get("function"), f"{place}.function")


def _tool(given: Json, own: str, parameter: str) -> Tool:
    function = applied_fields(given, FunctionDefinition.names(), FunctionDefinition.rules, own)
    name = function_name(function, own, parameter)
    parameters = function.get("parameters")
    if parameters is not None:
        parameters = object_in(parameters, f"{own}.parameters", parameter)
        if parameters.get("type", "object") != "object":
            raise ToolsRefused(f"`{own}.parameters` must be a schema of `type` object", parameter=parameter)
        parameters = {"type": "object", **parameters}
    for field, kind_, said in (("description", str, "a string"), ("strict", bool, "a boolean")):
        if not isinstance(function.get(field, kind_()), kind_):
            raise ToolsRefused(f"`{own}.{field}`: expected {said}", parameter=parameter)
    shown = {key: value for key, value in function.items() if key != "strict"}
    return Tool(name=name, parameters=parameters, given={"type": "function", "function": shown})


def function_name(function: Json, place: str, parameter: str) -> str:
    """Return the name of a function. Raises `ToolsRefused` for one that OpenAI does not allow."""
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ToolsRefused(
            f"`{place}.name` must have 1 to 64 letters, digits, `_` or `-`. Given: {shown_name(name)}",
            parameter=parameter,
        )
    return name


def read_choice(value: object, info: ValidationInfo) -> ToolChoice:
    """Read `tool_choice`: OpenAI's words and objects, and LoRAX's bare name of a function."""
    tools = {tool.name for tool in cast("tuple[Tool, ...]", info.data.get("tools", ()))}
    choice = _choice(value)
    if choice.names is not None and (unknown := sorted(choice.names - tools)):
        raise ToolsRefused(f"`tool_choice` names {quoted(unknown[0])}, which `tools` lacks", parameter="tool_choice")
    if choice.is_required and not tools:
        raise ToolsRefused("`tool_choice` needs `tools`", parameter="tool_choice")
    return choice


def _choice(value: object) -> ToolChoice:
    if isinstance(value, str):
        words = {"none": ToolChoice(is_none=True), "auto": ToolChoice(), "required": ToolChoice(is_required=True)}
        return words.get(value) or ToolChoice(is_required=True, names=frozenset({value}))
    given = object_in(value, "tool_choice", "tool_choice")
    match given.get("type"):
        case "function":
            return ToolChoice(is_required=True, names=frozenset({_named(given, "tool_choice")}))
        case "allowed_tools":
            allowed = object_in(given.get("allowed_tools"), "tool_choice.allowed_tools", "tool_choice")
            mode = allowed.get("mode")
            if mode not in ("auto", "required"):
                raise ToolsRefused("`tool_choice.allowed_tools.mode` must be auto or required", parameter="tool_choice")
            listed = array("tool_choice.allowed_tools.tools", allowed.get("tools"))
            names = frozenset(_named(each, "tool_choice.allowed_tools.tools") for each in listed)
            if not names:
                raise ToolsRefused("`tool_choice.allowed_tools.tools` cannot be empty", parameter="tool_choice")
            return ToolChoice(is_required=mode == "required", names=names)
    raise ToolsRefused(
        "`tool_choice` must be none, auto, required, a function or allowed_tools", parameter="tool_choice"
    )


def _named(given: object, place: str) -> str:
    tool = object_in(given, place, "tool_choice")
    function = object_in(tool.get("function"), f"{place}.function", "tool_choice")
    return function_name(function, f"{place}.function", "tool_choice")


def object_in(value: object, place: str, parameter: str = "tools") -> Json:
    """Return a value that must be an object. Raises `ToolsRefused`."""
    if isinstance(value, dict):
        return value
    raise ToolsRefused(f"`{place}`: expected an object, given {kind_of(value)}", parameter=parameter)


def shown_name(value: object) -> str:
    """Return a name for an error: its begin, or its kind if it is no string."""
    return quoted(value[:80]) if isinstance(value, str) else kind_of(value)


Tools = Annotated[
    tuple[Tool, ...],
    Read(read_tools, shape=list[ToolDefinition] | None),
    Field(description="Functions that the reply may call."),
]
Choice = Annotated[
    ToolChoice,
    Read(read_choice, shape=str | dict[str, Any] | None),
    Field(description="`none`, `auto`, `required`, a function, or `allowed_tools`."),
]
