"""Options that several verbs share, with one wording each."""

from pathlib import Path
from typing import Annotated

import typer

from manylora.system.printable import printable_lines

BaseOption = Annotated[
    str | None,
    typer.Option(help="Base model: a known name, a directory, or a GGUF file. Default: SmolLM2-135M-Instruct."),
]
BasesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Base model: a known name, a directory, or a GGUF file; repeatable, the first is the default. Default: "
        "SmolLM2-135M-Instruct."
    ),
]
TensorParallelOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Ranks that share each base: processes with a part of its heads and weights. Default: 1."
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        help="How the base's weights are held: none (as they are), int8 (smaller, faster linear layers) or "
        "int4 (smaller still). "
        "Default: none."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Device of the arithmetic: cpu, cuda, cuda:1 …, or auto (a card if there is one). Default: cpu."),
]
JsonTextOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AdapterRootOption = Annotated[
    list[Path] | None,
    typer.Option(help="A directory whose sub-directories are LoRA adapters; repeatable. Default: the demo adapters."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GROUP.SETTING=VALUE", help="Any setting by name. May be given several times."),
]
ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file of settings.")]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Longest sequence, prompt and reply together. Default: the window of the base.")
]
AdapterStoreOption = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Place in object storage, such as s3://bucket/prefix. Several may be given."),
]


def plain(text: str) -> str:
    """Return a text escaped for a line with rich markup, so that its square brackets and colons stay as they are."""
    from rich.markup import escape

    return escape(printable_lines(text))
