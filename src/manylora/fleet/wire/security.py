"""The secret of a fleet, its TLS, and the addresses on which an engine may listen."""

import ipaddress
import os
import ssl
import stat
from pathlib import Path

from manylora.config.groups.fleet import FleetConfig
from manylora.errors import ConfigInvalid
from manylora.fleet.wire.greeting import FleetSecret
from manylora.system.failures import cause_of

LEAST_SECRET_BYTES = 16


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of an address that `checks.host_and_port` accepts."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


CERTIFICATES_ALONE = FleetSecret(b"")
"""The key of a fleet without a secret, whose greeting proves nothing: the certificates of both sides are the proof."""


def read_secret(config: FleetConfig) -> FleetSecret:
    """Return the secret of the fleet; `CERTIFICATES_ALONE` where both sides show a certificate instead.

    Raises `ConfigInvalid` without either, and for a secret that others may read.
    """
    if not config.secret_file and config.tls_certificate and config.tls_authority:
        return CERTIFICATES_ALONE
    if not config.secret_file:
        raise ConfigInvalid(
            "fleet.secret_file must name a file with the secret of the fleet, 16 bytes at least, the same at every "
            "edge and engine (`head -c 32 /dev/urandom | base64 > secret && chmod 600 secret`); or every edge and "
            "engine has a certificate (fleet.tls_certificate, fleet.tls_key, fleet.tls_authority)"
        )
    path = Path(config.secret_file).expanduser()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(4096).strip()
    except OSError as error:
        raise ConfigInvalid(f"fleet.secret_file: cannot read {path}: {cause_of(error)}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigInvalid(f"fleet.secret_file: others may read {path}; `chmod 600` it")
    if len(data) < LEAST_SECRET_BYTES:
        raise ConfigInvalid(
            f"fleet.secret_file: {path} has {len(data)} bytes; a secret has {LEAST_SECRET_BYTES} at least"
        )
    return FleetSecret(data)


def host_tls(config: FleetConfig) -> ssl.SSLContext | None:
    """Return the TLS context of an engine; None: its connections are not encrypted. Raises `ConfigInvalid`.

    With `fleet.tls_authority` an edge must show a certificate of that authority.
    """
    _require_key(config)
    if not config.tls_certificate:
        if config.tls_authority:
            raise ConfigInvalid("fleet.tls_authority of an engine needs fleet.tls_certificate and fleet.tls_key")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _show_certificate(context, config)
    if config.tls_authority:
        try:
            context.load_verify_locations(cafile=str(Path(config.tls_authority).expanduser()))
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(f"fleet.tls_authority: cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def edge_tls(config: FleetConfig) -> ssl.SSLContext | None:
    """Return the TLS context of an edge; None: its connections are not encrypted. Raises `ConfigInvalid`.

    With `fleet.tls_certificate` the edge shows it to an engine that asks for one.
    """
    _require_key(config)
    if not config.tls_authority:
        if config.tls_certificate:
            raise ConfigInvalid("fleet.tls_certificate of an edge needs fleet.tls_authority, the engines' authority")
        return None
    try:
        context = ssl.create_default_context(cafile=str(Path(config.tls_authority).expanduser()))
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"fleet.tls_authority: cannot be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if config.tls_certificate:
        _show_certificate(context, config)
    return context


def _require_key(config: FleetConfig) -> None:
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise ConfigInvalid("fleet.tls_certificate and fleet.tls_key must be given together")


def _show_certificate(context: ssl.SSLContext, config: FleetConfig) -> None:
    try:
        context.load_cert_chain(Path(config.tls_certificate).expanduser(), Path(config.tls_key).expanduser())
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"fleet.tls_certificate, fleet.tls_key: cannot be used: {error}") from error


def refuse_public_address(config: FleetConfig) -> None:
    """Raise `ConfigInvalid` for an address of `fleet.listen` that any machine may reach, unless that is meant."""
    host, _ = split_address(config.listen)
    if config.allow_public or host == "localhost":
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or address.is_unspecified or not address.is_private:
        raise ConfigInvalid(
            f"fleet.listen {config.listen} is neither a loopback nor a private address: machines outside of the fleet "
            "could reach the engine. If that is meant, say so with `--set fleet.allow_public=true`"
        )
