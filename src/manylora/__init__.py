"""manylora: one base model, thousands of fine-tuned models, paid by the token."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manylora.engine.request import SamplingParams
    from manylora.wiring.llm import LLM, TextOutput

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "TextOutput", "__version__"]


def __getattr__(name: str) -> Any:  # one of the classes in the function
    """Import the library's classes at their first use, so that the command and the edge run without torch."""
    if name in ("LLM", "TextOutput"):
        from manylora.wiring import llm

        return getattr(llm, name)
    if name == "SamplingParams":
        from manylora.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'manylora' has no attribute {name!r}")
