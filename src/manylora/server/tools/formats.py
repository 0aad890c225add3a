"""The forms in which models write calls of tools."""

import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from manylora.server.tools.tool import Tool

_ALPHANUMERIC = string.ascii_letters + string.digits


class Syntax(Enum):
    """The text of one call.

    OBJECT      a JSON object with a name and arguments
    MARKED      the name, marks, and the JSON object of arguments
    PARAMETERS  tags for the name and for each argument; an argument that is a string stands there as it is
    """

    OBJECT = auto()
    MARKED = auto()
    PARAMETERS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of calls in a reply's text. With `MARKED`, each call has a trigger of its own.

    name       the value of the setting `model.tool_format`
    triggers   texts that begin a block of calls; `{` is the first character of the first call itself
    syntax     the text of one call
    opener     text between the trigger and the first call
    separator  text between two calls of one block; empty: a block has one call
    closer     text behind the last call of a block
    arguments  the key of the arguments in a call
    is_whole   whether a block stands alone: calls begin with the reply, or there are none
    marks      the texts in a call behind its name, the last one before the arguments, for `MARKED`
    id_length  characters of a call's id behind `call_`; 0: nine letters and digits alone, as Mistral's templates ask
    built_in   tools that the model calls as `name.call(…)` behind the last trigger
    code       the tool whose argument is the whole text behind the last trigger; empty: there is none
    """

    name: str
    triggers: tuple[str, ...]
    syntax: Syntax = Syntax.OBJECT
    opener: str = ""
    separator: str = ""
    closer: str = ""
    arguments: str = "arguments"
    is_whole: bool = False
    marks: tuple[str, ...] = ()
    id_length: int = 24
    built_in: tuple[str, ...] = ()
    code: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The texts of calls that may be special tokens."""
        return (*self.triggers, *self.marks)

    def new_id(self) -> str:
        """Return a fresh id of a call."""
        if self.id_length:
            return "call_" + secrets.token_hex(self.id_length // 2)
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))

    def is_built_in(self, tool: Tool) -> bool:
        """Return whether the model calls a tool without having been shown its schema.

        A tool of the same name with other arguments than strings, all required, is called like any other tool.
        """
        if tool.name not in (*self.built_in, self.code):
            return False
        given = tool.parameters or {}
        properties = given.get("properties")
        required = given.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list) or given.keys() - _KEYWORDS:
            return False
        if not properties or not all(isinstance(each, str) for each in required):
            return False
        if set(properties) != set(required) or (tool.name == self.code and len(properties) > 1):
            return False
        return all(
            name.isidentifier() and name.isascii() and isinstance(each, dict) and each.get("type") == "string"
            for name, each in properties.items()
        )

    def template_fields(self, tools: Collection[Tool]) -> dict[str, Any]:
        """Return the variables by which a chat template shows tools: `tools`, and maybe `builtin_tools`."""
        built_in = [tool.name for tool in tools if self.is_built_in(tool)]
        others = [tool.given for tool in tools if tool.name not in built_in]
        return {"tools": others or None, **({"builtin_tools": built_in} if built_in else {})}


_KEYWORDS = frozenset({"type", "properties", "required", "additionalProperties", "title", "description", "$schema"})
HERMES = ToolFormat(name="hermes", triggers=("<tool_call>",), closer="</tool_call>")
# Source: the chat template of Qwen3-Coder.
QWEN3_CODER = ToolFormat(name="qwen3-coder", triggers=("<tool_call>",), closer="</tool_call>", syntax=Syntax.PARAMETERS)
MISTRAL = ToolFormat(name="mistral", triggers=("[TOOL_CALLS]",), opener="[", separator=",", closer="]", id_length=0)
LLAMA3 = ToolFormat(
    name="llama3", triggers=("{", "<|python_tag|>"), separator=";", arguments="parameters", is_whole=True
)
# Source: the chat template of Llama 3.1 and its page of prompt formats, built-in and user-defined tools.
LLAMA3_BUILT_IN = ToolFormat(
    name="llama3-builtin",
    triggers=LLAMA3.triggers,
    separator=";",
    arguments="parameters",
    is_whole=True,
    built_in=("brave_search", "wolfram_alpha"),
    code="code_interpreter",
)
LLAMA3_FUNCTION = ToolFormat(
    name="llama3-function", triggers=("<function=",), syntax=Syntax.MARKED, marks=(">",), closer="</function>"
)
# Source: mistral-common, `InstructTokenizerV11` and `V13`: one with the id of the call, one without.
MISTRAL_V11 = ToolFormat(
    name="mistral-v11",
    triggers=("[TOOL_CALLS]",),
    syntax=Syntax.MARKED,
    marks=("[CALL_ID]", "[ARGS]"),
    id_length=0,
)
MISTRAL_V13 = ToolFormat(
    name="mistral-v13", triggers=("[TOOL_CALLS]",), syntax=Syntax.MARKED, marks=("[ARGS]",), id_length=0
)
_ALL = (HERMES, QWEN3_CODER, MISTRAL, MISTRAL_V11, MISTRAL_V13, LLAMA3, LLAMA3_BUILT_IN, LLAMA3_FUNCTION)
FORMATS = {form.name: form for form in _ALL}


def format_of(template: str, setting: str = "auto") -> ToolFormat | None:
    """Return the form of calls of a base, by the setting or by the marks in its chat template; None: it has none.

    A template that does not read `tools` cannot show them, whatever the setting says.
    """
    if "tools" not in template:
        return None
    if setting != "auto":
        return FORMATS[setting]
    if "<function=" in template:
        if "<tool_call>" not in template:
            return LLAMA3_FUNCTION
        return QWEN3_CODER if "<parameter=" in template else None
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" not in template:
            return MISTRAL
        return MISTRAL_V11 if "[CALL_ID]" in template else MISTRAL_V13
    if '"parameters"' in template and ("ipython" in template or "python_tag" in template):
        return LLAMA3_BUILT_IN if "builtin_tools" in template else LLAMA3
    return None
