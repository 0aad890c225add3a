"""Variables that Kubernetes and Docker make for a service or link whose name begins with `manylora`.

They share the prefix of our settings: a Service named `manylora-server` makes MANYLORA_SERVER_PORT=tcp://10.0.0.1:8080
in every pod of its namespace. Their form distinguishes them from settings and from mistakes.
Source: Kubernetes, "Discovering services: environment variables", which keeps the form of Docker's container links.
"""

import ipaddress
import re

_PROTOCOL = "(?:tcp|udp|sctp)"
_NAME = r"MANYLORA(?:_[A-Z0-9_]+)?"
_LINK = re.compile(rf"{_NAME}_PORT(?:_[0-9]+_{_PROTOCOL.upper()})?")
_LINK_VALUE = re.compile(rf"{_PROTOCOL}://\S+:[0-9]+")
_PART = re.compile(rf"{_NAME}_PORT_[0-9]+_{_PROTOCOL.upper()}_(PROTO|PORT|ADDR)")
_SERVICE = re.compile(rf"{_NAME}_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?")


def is_service_variable(name: str, value: str) -> bool:
    """Return whether an environment variable describes a service or a link; settings and mistakes do not."""
    if _LINK.fullmatch(name) and _LINK_VALUE.fullmatch(value):
        return True
    if part := _PART.fullmatch(name):
        return _has_form(part[1], value)
    service = _SERVICE.fullmatch(name)
    return service is not None and not (service[1] == "HOST" and service[2]) and _has_form(service[1], value)


def _has_form(part: str, value: str) -> bool:
    match part:
        case "PROTO":
            return re.fullmatch(_PROTOCOL, value) is not None
        case "PORT":
            return re.fullmatch("[0-9]{1,5}", value) is not None
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
