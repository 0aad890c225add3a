"""The calls of tools in replies of POST /v1/chat/completions, whole and in streams."""

from collections.abc import Sequence

from manylora.server.generation.order import ChatPrompt
from manylora.server.generation.service import Completion
from manylora.server.tools.calls import CallArguments, CallStart, Delta, ToolCallReader
from manylora.server.tools.formats import ToolFormat
from manylora.server.tools.tool import Tool

Fields = dict[str, object]


class CallWriter:
    """The content and the calls of one choice, in OpenAI's form."""

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], *, has_one_call: bool, is_older: bool = False) -> None:
        """`is_older`: the one call is a `function_call`, OpenAI's older form."""
        self._form = form
        self._is_older = is_older
        self._reader = ToolCallReader(form, tools, has_one_call=has_one_call)

    @property
    def has_calls(self) -> bool:
        return self._reader.num_calls > 0

    @property
    def finish_reason(self) -> str:
        """The finish reason of a reply that ends by itself."""
        return ("function_call" if self._is_older else "tool_calls") if self.has_calls else "stop"

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
        if calls and self._is_older:
            message["function_call"] = {"name": calls[0], "arguments": arguments[0]}
        elif calls:
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
            case CallStart(_, name) if self._is_older:
                return {"function_call": {"name": name, "arguments": ""}}
            case CallArguments(_, text) if self._is_older:
                return {"function_call": {"arguments": text}}
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
    tools = given.tools
    return CallWriter(prepared.tool_format, tools.tools, has_one_call=not tools.is_parallel, is_older=tools.is_older)
