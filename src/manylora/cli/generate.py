"""`manylora generate`: one reply on the terminal, without a server."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import AdapterRootOption, BaseOption, QuantizeOption, plain
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
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
) -> None:
    """Generate one reply in this process and stream it to the terminal."""
    from manylora.cli.settings import configuration, with_adapter_roots, with_base_fetched

    roots = tuple(str(root.expanduser().resolve()) for root in adapter_root or ())
    settings = configuration(
        None, (), {"model.base": base, "model.quantize": quantize, "adapters.roots": roots or None}
    )
    settings = with_adapter_roots(with_base_fetched(settings))
    asyncio.run(_generate(settings, prompt, adapter, max_new_tokens, temperature, is_raw=raw))


async def _generate(
    config: "Config", prompt: str, adapter: str | None, max_new_tokens: int, temperature: float, *, is_raw: bool
) -> None:
    from rich.console import Console

    from manylora.cli.settings import FACTORY
    from manylora.clock import SystemClock
    from manylora.engine.request import SamplingParams
    from manylora.ids import mint_request_id
    from manylora.models.text.tokenizer import Tokenizer
    from manylora.server.engine_client.link import InProcessLink
    from manylora.server.engine_client.loop import load_factory
    from manylora.server.generation.adapter_fields import AdapterFields
    from manylora.server.generation.admission import AdmissionControl
    from manylora.server.generation.models import ModelRouter, open_model
    from manylora.server.generation.order import ChatPrompt, Order, StopRules, TextPrompt
    from manylora.server.generation.service import Completion, GenerationService
    from manylora.server.generation.text import ReplyForm, TokenReport
    from manylora.server.http.context import RequestState
    from manylora.server.observability.metrics import Meters

    with Console(stderr=True).status(plain(f"loading {config.model.base}")) as status:
        engine, served = load_factory(FACTORY)(config, lambda line: status.update(plain(line)))
    tokenizer = Tokenizer(Path(served.base_dir), model_id=served.model_id)
    link, clock = InProcessLink(engine), SystemClock()
    model = open_model(config, served, link, tokenizer, clock)
    service = GenerationService(
        models=ModelRouter([model]),
        admission=AdmissionControl(config.server.max_concurrent_requests),
        meters=Meters(),
        clock=clock,
    )
    message = {"role": "user", "content": prompt}
    order = Order(
        model=None,
        adapter_name=adapter,
        adapter=AdapterFields(),
        prompts=(TextPrompt(prompt) if is_raw else ChatPrompt(messages=(message,)),),
        num_sequences=1,
        sampling=SamplingParams(temperature=temperature),
        seed=None,
        stop=StopRules(),
        max_new_tokens=max_new_tokens,
        is_clamped=True,
        is_stream=True,
        form=ReplyForm(cuts_stops=False, report=TokenReport.NONE, keeps_text=False, keeps_tokens=False),
        budget_field="--max-new-tokens",
    )
    is_terminal = sys.stdout.isatty()
    try:
        await link.start()
        state = RequestState(request_id=mint_request_id(), arrived_s=clock.monotonic_s())
        async with Completion(service, order, state) as completion:
            async for piece in completion.outputs.pieces():
                if piece is not None:
                    typer.echo(printable_prose(piece.text) if is_terminal else piece.text, nl=False)
        typer.echo()
    finally:
        await link.close()
        model.close()
