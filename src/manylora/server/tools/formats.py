"""The forms in which models write calls of tools."""

import secrets
import string
from dataclasses import dataclass

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of calls in a reply's text. A call is a JSON object with a name and arguments.

    With `marks`, it is the name, the first mark, the object of arguments; and each call has a trigger of its own.

    name       the value of the setting `model.tool_format`
    triggers   texts that begin a block of calls; `{` is the first character of the first call itself
    opener     text between the trigger and the first call
    separator  text between two calls of one block; empty: a block has one call
    closer     text behind the last call of a block
    arguments  the key of the arguments in a call
    is_whole   whether a block stands alone: calls begin with the reply, or there are none
    marks      the texts in a call behind its name: the last one before the arguments; empty: a call is one object
    id_length  characters of a call's id behind `call_`; 0: nine letters and digits alone, as Mistral's templates ask
    """

    name: str
    triggers: tuple[str, ...]
    opener: str = ""
    separator: str = ""
    closer: str = ""
    arguments: str = "arguments"
    is_whole: bool = False
    marks: tuple[str, ...] = ()
    id_length: int = 24

    @property
    def shown(self) -> tuple[str, ...]:
        """The texts of calls that may be special tokens."""
        return (*self.triggers, *self.marks)

    def new_id(self) -> str:
        """Return a fresh id of a call."""
        if self.id_length:
            return "call_" + secrets.token_hex(self.id_length // 2)
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


HERMES = ToolFormat(name="hermes", triggers=("<tool_call>",), closer="</tool_call>")
MISTRAL = ToolFormat(name="mistral", triggers=("[TOOL_CALLS]",), opener="[", separator=",", closer="]", id_length=0)
LLAMA3 = ToolFormat(
    name="llama3", triggers=("{", "<|python_tag|>"), separator=";", arguments="parameters", is_whole=True
)
# Source: mistral-common, `InstructTokenizerV11` and `V13`: one with the id of the call, one without.
MISTRAL_V11 = ToolFormat(name="mistral-v11", triggers=("[TOOL_CALLS]",), marks=("[CALL_ID]", "[ARGS]"), id_length=0)
MISTRAL_V13 = ToolFormat(name="mistral-v13", triggers=("[TOOL_CALLS]",), marks=("[ARGS]",), id_length=0)
FORMATS = {form.name: form for form in (HERMES, MISTRAL, MISTRAL_V11, MISTRAL_V13, LLAMA3)}


def format_of(template: str, setting: str = "auto") -> ToolFormat | None:
    """Return the form of calls of a base, by the setting or by the marks in its chat template; None: it has none.

    A template that does not read `tools` cannot show them, whatever the setting says.
    """
    if "tools" not in template:
        return None
    if setting != "auto":
        return FORMATS[setting]
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" not in template:
            return MISTRAL
        return MISTRAL_V11 if "[CALL_ID]" in template else MISTRAL_V13
    if '"parameters"' in template and ("ipython" in template or "python_tag" in template):
        return LLAMA3
    return None
