"""The process that renders one adapter's chat templates: `python -m manylora.models.text.render_process`.

`template_renderer.py` of the server starts it.

The process that the edge starts renders nothing itself. For each key it forks a child that secludes itself
(`sandbox.py`) and serves that key alone until a job has another key, so that the effects of one adapter's template end
with its process. It reads one JSON line a job and answers each with one line; the forks take milliseconds.
"""

import contextlib
import importlib
import json
import logging
import os
import select
import signal
import sys
from typing import Any, BinaryIO

from manylora.clock import Clock, SystemClock
from manylora.errors import ManyloraError, TemplateFailed, TemplateVariableMissing
from manylora.models.text.sandbox import seclude
from manylora.models.text.template import ChatTemplate
from manylora.system.log_lines import configure_logs, log_context

log = logging.getLogger("manylora.models.text.render_process")  # its `__name__` is `__main__`

NICENESS = 10
CPU_S = 1.0
WALL_S = 10.0
"""Seconds of one render, with the compilation of a template that this child has not compiled before."""
MEMORY_BYTES = 384 << 20
MAX_ERROR_CHARACTERS = 500
_READ_BYTES = 1 << 16
_OVER_MEMORY = f"the chat template was stopped: over {MEMORY_BYTES >> 20} MiB of memory"
_LATE_IMPORTS = ("textwrap", "pprint", "random", "traceback", "jinja2.constants", "jinja2.debug", "encodings.idna")
"""Modules that filters and errors import at their first use."""

Json = dict[str, Any]  # JSON values of several types


class _RenderChild:
    """A fork that serves one key. `answer` sends it one job and returns its line, or None if it did not answer."""

    def __init__(self, key: str, clock: Clock, closing: tuple[int, ...]) -> None:
        self.key = key
        self._clock = clock
        jobs_out, jobs_in = os.pipe()
        answers_out, answers_in = os.pipe()
        self._is_reaped = False
        self._pid = os.fork()
        if not self._pid:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):  # the child's output must not enter the log
                os.dup2(nowhere, standard)
            for descriptor in (*closing, jobs_in, answers_out):
                os.close(descriptor)
            _serve_key(os.fdopen(jobs_out, "rb"), os.fdopen(answers_in, "wb", buffering=0))
        os.close(jobs_out)
        os.close(answers_in)
        self._jobs, self._answers = jobs_in, answers_out

    def answer(self, job: bytes, max_bytes: int) -> tuple[bytes | None, str]:
        """Return the line of the answer, or the reason why there is none."""
        deadline_s = self._clock.monotonic_s() + WALL_S
        found, unsent = bytearray(), memoryview(job)
        os.set_blocking(self._jobs, False)
        while not found.endswith(b"\n"):
            left_s = deadline_s - self._clock.monotonic_s()
            readable, writable, _ = select.select([self._answers], [self._jobs] if unsent else [], [], max(0.0, left_s))
            if not readable and not writable:
                return None, f"over {WALL_S:g} seconds"
            if writable:
                try:
                    unsent = unsent[os.write(self._jobs, unsent) :]
                except BrokenPipeError:
                    return None, self._cause()
            if readable:
                if not (data := os.read(self._answers, _READ_BYTES)):
                    return None, self._cause()
                found += data
                if len(found) > max_bytes:
                    return None, f"over {max_bytes} bytes of output"
        return bytes(found), ""

    def end(self) -> None:
        if not self._is_reaped:
            self._reap()
        os.close(self._jobs)
        os.close(self._answers)

    def _cause(self) -> str:
        """Return the reason why the child ended by itself."""
        if self._reap() == signal.SIGPROF:
            return f"over {CPU_S:g} seconds of processor time"
        return "its process ended"

    def _reap(self) -> int | None:
        """End the child, if it has not ended, and return the signal that ended it, if one did."""
        os.kill(self._pid, signal.SIGKILL)  # an ended child keeps its own status
        status = os.waitpid(self._pid, 0)[1]
        self._is_reaped = True
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def _serve_key(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Render job after job; never returns. The timer counts processor time, and its signal ends the process."""
    try:
        seclude(MEMORY_BYTES)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        templates: dict[str, ChatTemplate] = {}
        for line in jobs:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            answer = _rendered(json.loads(line), templates)
            text = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            signal.setitimer(signal.ITIMER_PROF, 0)
            while text:
                text = text[answers.write(text) :]
            if "ended" in answer:
                break
    finally:
        os._exit(0)


def _rendered(job: Json, templates: dict[str, ChatTemplate]) -> Json:
    try:
        if (template := templates.get(job["template"])) is None:
            templates.clear()
            template = templates[job["template"]] = ChatTemplate(job["template"])
        return {"text": template.render(job["variables"])}
    except MemoryError:
        return {"error": _OVER_MEMORY, "ended": True}
    except ManyloraError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"error": _OVER_MEMORY, "ended": True}
        kind = {"lacks": True} if isinstance(error, TemplateVariableMissing) else {}
        return {"error": error.message[:MAX_ERROR_CHARACTERS], **kind}
    except Exception as error:  # hostile input: any error is the answer to this job
        return {"error": f"the chat template was stopped: {type(error).__name__}", "ended": True}


def _warm() -> None:
    """Load everything that a render needs, since a child can open no file: the time zone, codecs, filters."""
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    source = "{% for m in messages %}{{ strftime_now('%d %b %Y') }}{{ m | tojson }}{{ m.a | trim }}{% endfor %}"
    ChatTemplate(source).render({"messages": [{"a": "é"}]})
    with contextlib.suppress(TemplateFailed):
        ChatTemplate("{% if %}")
    with contextlib.suppress(TemplateFailed):
        ChatTemplate("{{ raise_exception('x') }}{{ a.b.c }}").render({})


def main() -> None:
    """Serve jobs from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    configure_logs("renderer")
    _warm()
    clock, child = SystemClock(), None
    for line in sys.stdin.buffer:
        head = json.loads(line)  # a key and a limit; the next line is the job, which is passed on unread
        job = sys.stdin.buffer.readline()
        if child is not None and child.key != head["key"]:
            child.end()
            child = None
        child = child or _RenderChild(head["key"], clock, (answers.fileno(),))
        answer, cause = child.answer(job, head["max_bytes"])
        refusal = {"error": f"the chat template was stopped: {cause}", "ended": True}
        unsent = answer or json.dumps(refusal).encode() + b"\n"
        if b'"ended": true' in unsent[-32:]:
            child.end()
            child = None
            with log_context(**head["context"]):
                log.warning("template.stopped error=%s", json.loads(unsent)["error"])
        while unsent:
            unsent = unsent[answers.write(unsent) :]
    os._exit(0)


if __name__ == "__main__":
    main()
