"""The tools in the body of POST /v1/chat/completions, and the choice among them."""

import re
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
    given = array("tools", value)
    if len(given) > MAX_TOOLS:
        raise ToolsRefused(f"`tools` may have at most {MAX_TOOLS} entries. Given: {len(given)}", parameter="tools")
    tools = tuple(_tool(each, f"tools[{index}]") for index, each in enumerate(given))
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise ToolsRefused(f"`tools` has two functions with the name {quoted(tool.name)}", parameter="tools")
        names.add(tool.name)
    return tools


def _tool(given: object, place: str) -> Tool:
    tool = applied_fields(_object(given, place), ToolDefinition.names(), ToolDefinition.rules, place)
    if (kind := tool.get("type", "function")) != "function":
        raise ToolsRefused(f"`{place}.type` must be function. Given: {_shown(kind)}", parameter="tools")
    own = f"{place}.function"
    function = applied_fields(
        _object(tool.get("function"), own), FunctionDefinition.names(), FunctionDefinition.rules, own
    )
    name = function_name(function, own, "tools")
    parameters = function.get("parameters")
    if parameters is not None:
        parameters = _object(parameters, f"{own}.parameters")
        if parameters.get("type", "object") != "object":
            raise ToolsRefused(f"`{own}.parameters` must be a schema of `type` object", parameter="tools")
        parameters = {"type": "object", **parameters}
    for field, kind_, said in (("description", str, "a string"), ("strict", bool, "a boolean")):
        if not isinstance(function.get(field, kind_()), kind_):
            raise ToolsRefused(f"`{own}.{field}`: expected {said}", parameter="tools")
    shown = {key: value for key, value in function.items() if key != "strict"}
    return Tool(name=name, parameters=parameters, given={"type": "function", "function": shown})


def function_name(function: Json, place: str, parameter: str) -> str:
    """Return the name of a function. Raises `ToolsRefused` for one that OpenAI does not allow."""
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ToolsRefused(
            f"`{place}.name` must have 1 to 64 letters, digits, `_` or `-`. Given: {_shown(name)}",
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
    given = _object(value, "tool_choice", "tool_choice")
    match given.get("type"):
        case "function":
            return ToolChoice(is_required=True, names=frozenset({_named(given, "tool_choice")}))
        case "allowed_tools":
            allowed = _object(given.get("allowed_tools"), "tool_choice.allowed_tools", "tool_choice")
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
    tool = _object(given, place, "tool_choice")
    function = _object(tool.get("function"), f"{place}.function", "tool_choice")
    return function_name(function, f"{place}.function", "tool_choice")


def _object(value: object, place: str, parameter: str = "tools") -> Json:
    if isinstance(value, dict):
        return value
    raise ToolsRefused(f"`{place}`: expected an object, given {kind_of(value)}", parameter=parameter)


def _shown(value: object) -> str:
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
