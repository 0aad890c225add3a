"""Who may see and steer the server's adapters where no key is asked for: whoever calls from this machine itself."""

from manylora.errors import InsufficientPermissions
from manylora.http.loopback import why_not_local
from manylora.server.http.context import HttpContext
from manylora.tenancy import Scope


def is_by_key(context: HttpContext) -> bool:
    """Whether the caller's key says it: then it does not matter where the request comes from."""
    caller = context.arrival.caller
    return caller.key is not None and Scope.ADMIN in caller.scopes


def require_operator(context: HttpContext, *, is_open: bool) -> None:
    """Let only a program on this machine through, or everyone if `server.admin_open` is on.

    Raises `InsufficientPermissions` saying what was wrong.
    """
    why = None if is_open or is_by_key(context) else why_not_local(context.client_host, context.header)
    if why is not None:
        raise InsufficientPermissions(
            f"adapters are managed by callers on the server's own machine (server.admin_open is off); {why}"
        )


def is_operator(context: HttpContext, *, is_open: bool) -> bool:
    """The same as an answer, for what strangers may see less of."""
    return is_open or is_by_key(context) or why_not_local(context.client_host, context.header) is None
