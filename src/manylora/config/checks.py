"""Checks of single settings beyond type, bounds and choices. Each raises `ConfigInvalid`, which names the setting."""

import re
from dataclasses import fields

from manylora.adapter_ref import SourceName, parse_adapter_name, source_of
from manylora.config.address_rules import check_rule
from manylora.errors import AdapterReferenceInvalid, ConfigInvalid
from manylora.tenancy import BaseLimits, Limits

_PLAN_WEIGHT = re.compile(r"([^=\s,]{1,64})=([1-9][0-9]{0,2}|1000)")
_ISSUER = re.compile(r"[A-Za-z0-9_-]{1,32}")
QUANTIZE = ("none", "int8", "int4")
"""Values of `model.quantize`."""
_SHARE_OF_BASE = re.compile(r"(.+)=([1-9][0-9]{0,2}|1000)")
_QUANTIZE_OF_BASE = re.compile(rf"(.+)=({'|'.join(QUANTIZE)})")
_DEGREE_OF_BASE = re.compile(r"(.+)=([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])")
_WINDOW_OF_BASE = re.compile(r"(.+)=([2-9]|[1-9][0-9]{1,8})")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_RATES = tuple(field.name for field in fields(BaseLimits) if field.name != "base")
_LIMITS = tuple(field.name for field in fields(Limits) if field.name != "bases")
_SIGNUP_LIMIT = re.compile(rf"({'|'.join(_LIMITS)}|[^=\s]+/({'|'.join(_RATES)}))=([0-9]{{1,18}})")


def window(key: str, value: int) -> None:
    """Check `engine.max_model_len`: one position leaves no room for a token of the reply."""
    if value == 1:
        raise ConfigInvalid(f"{key} must be 0 or at least 2. Given: {value}")


def device(key: str, value: str) -> None:
    """Check the name of a device."""
    if not _DEVICE.fullmatch(value):
        raise ConfigInvalid(f"{key} must be auto, cpu, cuda or cuda:n. Given: {value!r}")


def url_or_empty(key: str, value: str) -> None:
    """Check that a text is an address with http or https, or empty."""
    if value and not value.startswith(("https://", "http://")):
        raise ConfigInvalid(f"{key} must be a URL, or empty. Given: {value!r}")


def deployment_or_empty(key: str, value: str) -> None:
    """Check the name of a deployment after that of its tenant, or an empty text."""
    if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}/[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", value):
        raise ConfigInvalid(f"{key} must be TENANT/NAME, or empty. Given: {value!r}")


def host_and_port(key: str, value: str) -> None:
    """Check an address such as `10.0.0.1:7070` or `[::1]:7070`."""
    host, _, port = value.rpartition(":")
    is_bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not host or is_bare_v6 or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ConfigInvalid(f"{key}: an address is host:port, given {value!r}")


def web_rule(key: str, value: str) -> None:
    """Check a host, an Origin or a proxy, each as `address_rules.check_rule` reads it."""
    check_rule(key, value)


def place(key: str, value: str) -> None:
    """Check a place in object storage."""
    if source_of(value) is None:
        raise ConfigInvalid(f"{key}: a place is s3://, gs://, az:// or https://…, given {value!r}")


def adapter_name(key: str, value: str) -> None:
    """Check the name of an adapter, with or without a source."""
    try:
        parse_adapter_name(value, frozenset(SourceName))
    except AdapterReferenceInvalid as error:
        raise ConfigInvalid(f"{key}: {error.message}") from None


def plan_weight(key: str, value: str) -> None:
    """Check a pair `plan=weight`."""
    if not _PLAN_WEIGHT.fullmatch(value):
        raise ConfigInvalid(f"{key}: a plan's weight is plan=1 to plan=1000, given {value!r}")


def invoice_issuer(key: str, value: str) -> None:
    """Check the first part of the numbers of invoices."""
    if not _ISSUER.fullmatch(value):
        raise ConfigInvalid(f"{key}: an issuer is 1 to 32 letters, digits, `-` or `_`, given {value!r}")


def signup_limit(key: str, value: str) -> None:
    """Check a pair `limit=number`."""
    if not _SIGNUP_LIMIT.fullmatch(value):
        raise ConfigInvalid(
            f"{key}: a limit is NAME=NUMBER of {', '.join(_LIMITS)}, or BASE/NAME=NUMBER of {', '.join(_RATES)}, "
            f"given {value!r}"
        )


def share_of_base(key: str, value: str) -> None:
    """Check a pair `base=share`."""
    if not _SHARE_OF_BASE.fullmatch(value):
        raise ConfigInvalid(f"{key}: a base's share is BASE=1 to BASE=1000, given {value!r}")


def degree_of_base(key: str, value: str) -> None:
    """Check a pair `base=degree`."""
    if not _DEGREE_OF_BASE.fullmatch(value):
        raise ConfigInvalid(f"{key}: a base's degree is BASE=1 to BASE=1024, given {value!r}")


def quantize_of_base(key: str, value: str) -> None:
    """Check a pair `base=form`."""
    if not _QUANTIZE_OF_BASE.fullmatch(value):
        raise ConfigInvalid(f"{key}: a base's form is BASE=one of {', '.join(QUANTIZE)}, given {value!r}")


def window_of_base(key: str, value: str) -> None:
    """Check a pair `base=positions`."""
    if not _WINDOW_OF_BASE.fullmatch(value):
        raise ConfigInvalid(f"{key}: a base's window is BASE=POSITIONS, 2 at least, given {value!r}")
