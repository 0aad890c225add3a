"""Settings of the console."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleConfig:
    """The pages for customers and operators at `/console`."""

    enabled: bool = setting(
        True,
        text="""
        Whether the server, or a control plane that runs alone, has a [console](console.md) at `/console`.
        """,
    )
    session_s: float = setting(
        43_200.0,
        low=60,
        high=2_592_000,
        text="""
        Seconds from a sign-in to the console to the end of its session; 43,200 is twelve hours. The control plane reads
        it.
        """,
    )
