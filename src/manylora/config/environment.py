"""The process environment. No other module reads it."""

import os
from pathlib import Path

KEY_VARIABLE, URL_VARIABLE = "MANYLORA_KEY", "MANYLORA_URL"
"""Not settings: the key that verbs such as `manylora tenants` show a running server, and the address of that server."""

HUB_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables of the hub's own client, which reads their values; the first one counts."""


def environment() -> dict[str, str]:
    """Return a copy of the environment, for a program that starts as from a person's shell."""
    return dict(os.environ)


def caller_key() -> str | None:
    """Return the key of verbs that talk to a running server; None: the environment has none."""
    return os.environ.get(KEY_VARIABLE) or None


def caller_url() -> str | None:
    """Return the address of the running server that verbs talk to; None: the environment has none."""
    return os.environ.get(URL_VARIABLE) or None


def hub_token_variable() -> str | None:
    """Return the name of the variable with the token of a Hugging Face hub; None: the environment has none."""
    return next((name for name in HUB_TOKEN_VARIABLES if os.environ.get(name, "").strip()), None)


def child_environment(*, joins_ray: bool = False) -> dict[str, str]:
    """Return the environment of a child process: this one's, with threads that sleep at a barrier instead of spinning.

    With another busy process on the same cores, threads that spin at a barrier make a step several times longer.
    The child imports no file of the working directory: Python takes an empty entry of PYTHONPATH for that directory.
    It gets Ray's variables, which have the token of a cluster, only if it joins one.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute()]
    own = {name: text for name, text in os.environ.items() if joins_ray or not name.startswith("RAY_")}
    found = {**own, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**found, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def set_variables(variables: dict[str, str]) -> None:
    """Set variables of this process and of its later children, for libraries that read their settings there."""
    os.environ.update(variables)
