"""The folders of a server, from its settings or from the user's environment."""

import os
import pwd
from pathlib import Path

from manylora.config.environment import environment
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid

_NAME_A_CACHE = "Let model.cache_dir (MANYLORA_MODEL_CACHE_DIR) name a folder that can be written"


def cache_dir(config: Config | None = None) -> Path:
    """Return the folder of bases, packed adapters and compiled kernels: `model.cache_dir`, else the user's cache.

    Raises `ConfigInvalid` if the user has no home folder.
    """
    if config is not None and config.model.cache_dir:
        return Path(config.model.cache_dir).expanduser()
    variables = environment()
    if named := variables.get("MANYLORA_MODEL_CACHE_DIR"):
        return Path(named).expanduser()
    root = variables.get("XDG_CACHE_HOME")
    if root and Path(root).is_absolute():  # as the specification of that variable says
        return Path(root) / "manylora"
    return _home(variables.get("HOME")) / ".cache" / "manylora"


def control_dir(config: Config) -> Path:
    """Return the folder of the control plane's database and pepper: `control.dir`, else one in the cache folder."""
    return Path(config.control.dir).expanduser() if config.control.dir else cache_dir(config) / "control"


def registry_dir(config: Config) -> Path:
    """Return the folder of uploads: `adapters.registry_dir`, else one in the control plane's folder."""
    given = config.adapters.registry_dir
    return Path(given).expanduser() if given else control_dir(config) / "uploads"


def metering_dir(config: Config) -> Path:
    """Return the folder of usage records: `metering.dir`, else one in the cache folder."""
    return Path(config.metering.dir).expanduser() if config.metering.dir else cache_dir(config) / "metering"


def counts_dir(config: Config) -> Path:
    """Return the folder of an engine's unrecorded counts: `fleet.counts_dir`, else one in the cache folder."""
    return Path(config.fleet.counts_dir).expanduser() if config.fleet.counts_dir else cache_dir(config) / "fleet"


def pushed_dir(config: Config) -> Path:
    """Return the folder of pushed adapters: `adapters.pushed_dir`, else one in the folder of usage records.

    One server at a time has that folder: it holds a lock on it.
    """
    given = config.adapters.pushed_dir
    return Path(given).expanduser() if given else metering_dir(config) / "pushed"


def storage_dir(config: Config) -> Path:
    """Return the folder of tenants' files and batches: `storage.dir`, else one in the control plane's folder."""
    return Path(config.storage.dir).expanduser() if config.storage.dir else control_dir(config) / "storage"


def _home(named: str | None) -> Path:
    try:
        home = Path(named or pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise ConfigInvalid(
            f"there is no home folder to keep the cache in: HOME is not set, and user {os.getuid()} is not in the list "
            f"of users. {_NAME_A_CACHE}"
        ) from None
    if not home.is_absolute():
        raise ConfigInvalid(f"HOME must be an absolute path. Given: {str(home)!r}. {_NAME_A_CACHE}")
    return home
