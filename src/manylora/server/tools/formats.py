"""The forms in which models write calls of tools."""

import secrets
import string
from dataclasses import dataclass

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of calls in a reply's text. A call is a JSON object with a name and arguments.

    name       the value of the setting `model.tool_format`
    triggers   texts that begin a block of calls; `{` is the first character of the first call itself
    opener     text between the trigger and the first call
    separator  text between two calls of one block; empty: a block has one call
    closer     text behind the last call of a block
    arguments  the key of the arguments in a call
    is_whole   whether a block stands alone: calls begin with the reply, or there are none
    id_length  characters of a call's id behind `call_`; 0: nine letters and digits alone, as Mistral's templates ask
    """

    name: str
    triggers: tuple[str, ...]
    opener: str = ""
    separator: str = ""
    closer: str = ""
    arguments: str = "arguments"
    is_whole: bool = False
    id_length: int = 24

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
FORMATS = {form.name: form for form in (HERMES, MISTRAL, LLAMA3)}


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
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if '"parameters"' in template and ("ipython" in template or "python_tag" in template):
        return LLAMA3
    return None
