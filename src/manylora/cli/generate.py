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
    from manylora.engine.request import SamplingParams, StopParams
    from manylora.models.text.tokenizer import Tokenizer
    from manylora.server.engine_client.link import InProcessLink
    from manylora.server.engine_client.loop import load_factory
    from manylora.server.generation.adapter_texts import AdapterTexts
    from manylora.server.generation.admission import AdmissionControl, PreparedPrompt
    from manylora.server.generation.outputs import begin
    from manylora.server.generation.tokenizer_pool import WorkPool
    from manylora.tenancy import DEFAULT_TENANT

    with Console(stderr=True).status(plain(f"loading {config.model.base}")) as status:
        engine, served = load_factory(FACTORY)(config, lambda line: status.update(plain(line)))
    tokenizer = Tokenizer(Path(served.base_dir), model_id=served.model_id)
    pool = WorkPool()
    gate = AdmissionControl(served=served, settings=config.server, tokenizer=tokenizer, pool=pool)
    ref = await gate.resolver.adapter(adapter, tenant=DEFAULT_TENANT)
    link = InProcessLink(engine)
    texts = AdapterTexts(
        tokenizer,
        link,
        pool,
        window=served.max_model_len,
        max_wait_s=config.engine.max_queue_s,
        allows_templates=config.adapters.chat_templates,
    )
    await link.start()
    is_terminal = sys.stdout.isatty()
    try:
        rules = await texts.of(ref, DEFAULT_TENANT)
        if is_raw:
            tokens = await texts.encode(rules, prompt, add_special_tokens=True)
        else:
            _, tokens = await texts.render_chat(rules, [{"role": "user", "content": prompt}], DEFAULT_TENANT)
        budget = gate.budget(
            len(tokens), max_new_tokens, field="prompt", budget_field="--max-new-tokens", is_clamped=True
        )
        draft = PreparedPrompt(
            tokens=tokens,
            characters=len(prompt),
            adapter=ref,
            sampling=SamplingParams(temperature=temperature),
            stop=StopParams(max_new_tokens=budget),
            seed=None,
            num_sequences=1,
            rules=rules,
        )
        with begin(link, gate, [draft], gate.expand(draft, DEFAULT_TENANT), SystemClock()) as work:
            async for text in work.texts():
                typer.echo(printable_prose(text) if is_terminal else text, nl=False)
        typer.echo()
    finally:
        texts.close()
        await link.close()
        gate.resolver.close()
        pool.close()
