"""The calls of tools in replies of POST /v1/chat/completions, whole and in streams."""

from collections.abc import Sequence

from manylora.server.generation.order import ChatPrompt
from manylora.server.generation.service import Completion
from manylora.server.tools.calls import CallArguments, CallStart, Delta, ToolCallReader
from manylora.server.tools.formats import ToolFormat

Fields = dict[str, object]


class CallWriter:
    """The content and the calls of one choice, in OpenAI's form."""

    def __init__(self, form: ToolFormat, names: Sequence[str], *, has_one_call: bool) -> None:
        self._form = form
        self._reader = ToolCallReader(form, names, has_one_call=has_one_call)

    @property
    def has_calls(self) -> bool:
        return self._reader.num_calls > 0

    def deltas(self, text: str, *, is_last: bool) -> list[Fields]:
        """Return the deltas that the next text of a stream decides."""
        return [self._delta(delta) for delta in self._read(text, is_last=is_last)]

    def message(self, text: str) -> Fields:
        """Return the message of a whole reply. Its content is null if it has calls alone."""
        content, calls, arguments = "", list[str](), list[str]()
        for delta in self._read(text, is_last=True):
            match delta:
                case CallStart(_, name):
                    calls.append(name)
                    arguments.append("")
                case CallArguments(index, part):
                    arguments[index] += part
                case str():
                    content += delta
        message: Fields = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [
                {"id": self._form.new_id(), "type": "function", "function": {"name": name, "arguments": given}}
                for name, given in zip(calls, arguments, strict=True)
            ]
        return message

    def _read(self, text: str, *, is_last: bool) -> list[Delta]:
        found = self._reader.push(text)
        return found + self._reader.finish() if is_last else found

    def _delta(self, delta: Delta) -> Fields:
        match delta:
            case CallStart(index, name):
                call = {"id": self._form.new_id(), "type": "function", "function": {"name": name, "arguments": ""}}
                return {"tool_calls": [{"index": index, **call}]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return {"content": delta}


def call_writer(completion: Completion) -> CallWriter | None:
    """Return a writer for one choice; None: the request has no tools."""
    [given, *_], [prepared, *_] = completion.order.prompts, completion.prompts
    if not isinstance(given, ChatPrompt) or given.tools is None or prepared.tool_format is None:
        return None
    names = [tool.name for tool in given.tools.tools]
    return CallWriter(prepared.tool_format, names, has_one_call=not given.tools.is_parallel)
