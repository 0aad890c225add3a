"""`manylora generate`: one reply on the terminal, without a server."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import (
    AdapterRootOption,
    BaseOption,
    DeviceOption,
    QuantizeOption,
    TensorParallelOption,
    plain,
)
from manylora.system.printable import printable_prose

if TYPE_CHECKING:
    from manylora.config.settings import Config


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    base: BaseOption = None,
    adapter_root: AdapterRootOption = None,
    adapter: Annotated[str | None, typer.Option(help="Name of an adapter below a root. Default: the base.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    quantize: QuantizeOption = None,
    tensor_parallel: TensorParallelOption = None,
    device: DeviceOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
) -> None:
    """Generate one reply in this process and stream it to the terminal."""
    from manylora.cli.settings import configuration, with_adapter_roots, with_bases_fetched
    from manylora.wiring.planning import refuse_impossible_plan

    roots = tuple(str(root.expanduser().resolve()) for root in adapter_root or ())
    settings = configuration(
        None,
        (),
        {
            "model.base": base,
            "model.more_bases": (),
            "model.quantize": quantize,
            "model.tensor_parallel": tensor_parallel,
            "model.device": device,
            "adapters.roots": roots or None,
        },
    )
    refuse_impossible_plan(settings)  # before a base of many gigabytes is fetched
    settings = with_adapter_roots(with_bases_fetched(settings))
    _print_reply(settings, prompt, adapter, max_new_tokens, temperature, is_raw=raw)


def _print_reply(
    config: "Config", prompt: str, adapter: str | None, max_new_tokens: int, temperature: float, *, is_raw: bool
) -> None:
    from rich.console import Console

    from manylora.engine.request import SamplingParams
    from manylora.wiring.llm import LLM
    from manylora.wiring.load_progress import PASSING

    with Console(stderr=True).status(plain(f"loading {config.model.base}")) as status:
        llm = LLM.from_config(config, lambda line: status.update(plain(line.lstrip(PASSING))))
    is_terminal = sys.stdout.isatty()
    with llm:
        given = prompt if is_raw else [{"role": "user", "content": prompt}]
        sampling = SamplingParams(temperature=temperature)
        for text in llm.stream(given, adapter, max_tokens=max_new_tokens, sampling=sampling):
            typer.echo(printable_prose(text) if is_terminal else text, nl=False)
    typer.echo()
