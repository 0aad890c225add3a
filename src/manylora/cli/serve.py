"""`manylora serve`: one base model, its adapters, and the HTTP edge."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from manylora.server.served import ServedModel

MAX_NAMES_SHOWN = 8


def serve(
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a known name, or a directory with config.json. Default: SmolLM2-135M-Instruct."),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(help="A directory whose sub-directories are LoRA adapters. May be given several times."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. Default: 8080.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest sequence, prompt and reply together. Default: as memory allows.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.SETTING=VALUE", help="Any setting by name. May be given several times."),
    ] = None,
) -> None:
    """Serve a base model and all its adapters over HTTP.

    Without flags it fetches the default base model, serves the demo adapters, and listens on 127.0.0.1:8080. It speaks
    OpenAI's /v1 routes and LoRAX's /generate. Stop it with Ctrl-C: running requests are finished first.
    """
    from rich.console import Console

    from manylora.cli.settings import FACTORY, configuration, with_base_fetched, with_demo_adapters
    from manylora.server.run import Announce, run_server

    roots = tuple(str(root.expanduser().resolve()) for root in adapter_root or ())
    settings = configuration(
        config,
        set_ or (),
        {
            "model.base": base,
            "adapters.roots": roots or None,
            "server.host": host,
            "server.port": port,
            "engine.max_model_len": max_model_len,
        },
    )
    settings = with_demo_adapters(with_base_fetched(settings))
    console = Console(stderr=True, highlight=False)
    with console.status(f"starting {settings.model.base}", spinner="dots") as status:
        terminal = _Terminal(console, status)
        run_server(settings, factory=FACTORY, announce=Announce(progress=terminal.progress, ready=terminal.ready))


class _Terminal:
    """Shows the stages of the start with the time each took, then how to try the server."""

    def __init__(self, console: "Console", status: "Status") -> None:
        from manylora.clock import SystemClock

        self._console = console
        self._status = status
        self._clock = SystemClock()
        self._begun_s = self._last_s = self._clock.monotonic_s()

    def progress(self, line: str) -> None:
        now_s = self._clock.monotonic_s()
        self._console.print(f"[dim]{now_s - self._last_s:5.1f} s[/dim]  {_plain(line)}")
        self._last_s = now_s

    def ready(self, served: "ServedModel", url: str) -> None:
        from manylora.server.catalog import adapter_names

        self._status.stop()
        names = adapter_names(served.adapter_roots)
        total_s = self._clock.monotonic_s() - self._begun_s
        self._console.print(f"[bold]{_plain(served.model_id)}[/bold] is served at [bold]{url}[/bold] ({total_s:.1f} s)")
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (" …" if len(names) > MAX_NAMES_SHOWN else "")
        self._console.print(f"{len(names)} adapters{': ' + _plain(shown) if names else ''}\n")
        self._console.print(
            _plain(examples(url, names[0] if names else served.model_id, has_adapter=bool(names))), soft_wrap=True
        )


def examples(url: str, name: str, *, has_adapter: bool) -> str:
    """Three ways to try the server, ready to paste."""
    parameters = f'"adapter_id": "{name}", ' if has_adapter else ""
    keyword = f'adapter_id="{name}", ' if has_adapter else ""
    return f"""Try it:

  curl -s {url}/generate -H 'Content-Type: application/json' \\
    -d '{{"inputs": "Where is my parcel?", "parameters": {{{parameters}"max_new_tokens": 32}}}}'

  # pip install openai
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  messages = [{{"role": "user", "content": "Where is my parcel?"}}]
  reply = client.chat.completions.create(model="{name}", messages=messages)
  print(reply.choices[0].message.content)

  # pip install lorax-client
  from lorax import Client
  print(Client("{url}").generate("Where is my parcel?", {keyword}max_new_tokens=32).generated_text)
"""


def _plain(text: str) -> str:
    """Text without markup: square brackets are meant."""
    return text.replace("[", "\\[")
