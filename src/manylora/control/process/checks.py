"""Check the settings of a control plane that runs alone, before its imports."""

from manylora.config.settings import Config
from manylora.errors import ConfigInvalid
from manylora.http.loopback import is_loopback

MIN_TOKEN_LETTERS = 16


def check_settings(config: Config) -> None:
    """Raise `ConfigInvalid` without a token for edges, and for an open control plane that other machines reach."""
    if len(config.control.edge_token) < MIN_TOKEN_LETTERS:
        raise ConfigInvalid(
            f"control.edge_token must be a secret of at least {MIN_TOKEN_LETTERS} letters, the same here and on every "
            "server of this control plane (openssl rand -hex 32 makes one)"
        )
    is_open = config.server.auth == "off"
    if is_open and not is_loopback(config.control.host) and not config.server.allow_open:
        raise ConfigInvalid(
            f"server.auth is off and {config.control.host} can be reached by other machines: every caller could use "
            "this control plane. If that is meant, say so with `--set server.allow_open=true`."
        )
