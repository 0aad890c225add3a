"""The processes that render adapters' templates: what they may not do, and what becomes of one that is killed."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manylora.config.environment import child_environment
from manylora.errors import TemplateFailed
from manylora.server.generation.template_renderer import Renderer
from tests.support.waiting import wait_for

HELLO = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
VARIABLES = {"messages": [{"role": "user", "content": "hé\u2028\n"}]}
ESCAPED = """
import ctypes, os, resource, signal, socket, sys
from manylora.models.text.sandbox import seclude
libc = ctypes.CDLL(None, use_errno=True)
print("filtered", seclude(256 << 20), flush=True)
def attempt(name, act):
    try:
        act()
    except BaseException as error:
        print(name, "refused", flush=True)
    else:
        print(name, "DONE", flush=True)
attempt("open", lambda: open("/etc/passwd"))
attempt("create", lambda: open("left-behind", "w"))
attempt("socket", lambda: socket.socket())
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("fork", os.fork)
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("raise the limit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
attempt("memory", lambda: bytearray(512 << 20))
"""


def test_a_secluded_process_reaches_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", ESCAPED],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = ran.stdout.splitlines()
    assert lines[0] == "filtered True", ran.stderr
    assert len(lines) == 9, ran.stdout
    assert all(line.endswith("refused") for line in lines[1:]), ran.stdout
    assert not list(tmp_path.iterdir())


async def _render(renderer: Renderer, template: str, *, caller: str = "acme", max_bytes: int = 1 << 20) -> str:
    return await renderer.render(template, VARIABLES, caller=caller, digest=template, max_bytes=max_bytes)


def test_a_killed_renderer_is_started_anew() -> None:
    async def scenario() -> None:
        renderer = Renderer(1)
        try:
            assert await _render(renderer, HELLO) == "user:hé\u2028\n"
            [process] = renderer.pids
            os.kill(process, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: not _is_alive(process))
            assert await _render(renderer, HELLO) == "user:hé\u2028\n"
            [child] = _children(renderer.pids[0])
            os.kill(child, signal.SIGKILL)
            with pytest.raises(TemplateFailed):
                await _render(renderer, HELLO)
            assert await _render(renderer, HELLO) == "user:hé\u2028\n"
        finally:
            renderer.close()

    asyncio.run(scenario())


def test_each_caller_has_a_process_of_its_own() -> None:
    async def scenario() -> None:
        renderer = Renderer(1)
        try:
            seen = set()
            for caller in ("acme", "globex", "acme"):
                await _render(renderer, HELLO, caller=caller)
                seen.add(tuple(_children(renderer.pids[0])))
            assert len(seen) == 3
        finally:
            renderer.close()

    asyncio.run(scenario())


def test_an_output_over_the_bound_is_refused() -> None:
    async def scenario() -> None:
        renderer = Renderer(1)
        try:
            with pytest.raises(TemplateFailed, match="over 100 bytes of output"):
                await _render(renderer, "{{ 'a' * 1000 }}", max_bytes=100)
        finally:
            renderer.close()

    asyncio.run(scenario())


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # it has ended before or while it was read
        return False


def test_variables_that_no_json_holds_are_the_caller_s_error() -> None:
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]

    async def main() -> None:
        renderer = Renderer()
        try:
            with pytest.raises(TemplateFailed, match="nested too deeply"):
                await renderer.render(HELLO, {"messages": deep}, caller="a", digest="d", max_bytes=1000)
        finally:
            renderer.close()

    asyncio.run(main())
