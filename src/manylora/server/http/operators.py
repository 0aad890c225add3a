"""The check of operators: a key of the scope `admin`, or a call from this machine where the server needs no keys."""

from manylora.errors import InsufficientPermissions
from manylora.http.loopback import why_not_local
from manylora.server.http.context import HttpContext
from manylora.tenancy import Scope


def is_by_key(context: HttpContext) -> bool:
    """Return whether the caller's key makes it an operator, from any address."""
    caller = context.arrival.caller
    return caller.key is not None and Scope.ADMIN in caller.scopes


def require_operator(context: HttpContext, *, is_open: bool) -> None:
    """Require an operator: a program on this machine, or any caller if `server.admin_open` is on.

    Raises `InsufficientPermissions` with the reason.
    """
    why = None if is_open or is_by_key(context) else why_not_local(context.client_host, context.header)
    if why is not None:
        raise InsufficientPermissions(
            f"adapters are managed by callers on the server's own machine (server.admin_open is off); {why}"
        )


def is_operator(context: HttpContext, *, is_open: bool) -> bool:
    """Return whether `require_operator` accepts the caller, for replies that show more to operators."""
    return is_open or is_by_key(context) or why_not_local(context.client_host, context.header) is None
