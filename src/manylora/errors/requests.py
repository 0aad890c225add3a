"""Errors of requests that are wrong in themselves."""

from manylora.errors.row import INVALID, ErrorRow, ManyloraError


class RequestRejected(ManyloraError):
    """The request itself is wrong; nothing was done."""

    row = ErrorRow(422, "validation", 400, INVALID, "invalid_parameter")


class InvalidJson(RequestRejected):
    """The body is not JSON."""

    row = ErrorRow(400, "validation", 400, INVALID, "invalid_json")


class InvalidParameter(RequestRejected):
    """A field is missing, unknown, of the wrong type, out of range, or not built yet."""


class ContextLengthExceeded(RequestRejected):
    """The prompt, or the prompt and its budget, are longer than the window."""

    row = ErrorRow(422, "validation", 400, INVALID, "context_length_exceeded")


class TemplateFailed(RequestRejected):
    """The chat template refused the messages, or the model has none."""

    row = ErrorRow(422, "template_error", 400, INVALID, "template_error")


class TemplateVariableMissing(TemplateFailed):
    """The chat template needs a variable that the request does not set."""

    row = ErrorRow(422, "missing_template_variable", 400, INVALID, "template_error")


class ToolsRefused(InvalidParameter):
    """The tools, their choice or their calls are wrong, or the model has no form of calls."""

    row = ErrorRow(422, "tool_error", 400, INVALID, "tool_error")


class BodyTooLarge(RequestRejected):
    """The body has more bytes than the limit."""

    row = ErrorRow(413, "validation", 413, INVALID, "body_too_large")


class UnsupportedMediaType(RequestRejected):
    """The body is not declared to be JSON."""

    row = ErrorRow(415, "validation", 415, INVALID, "unsupported_media_type")


class MethodNotAllowed(RequestRejected):
    """The route exists, for another method."""

    row = ErrorRow(405, "validation", 405, INVALID, "method_not_allowed")


class RouteNotFound(RequestRejected):
    """The server has no such route."""

    row = ErrorRow(404, "not_found", 404, INVALID, "unknown_route")


class DeploymentNotFound(RequestRejected):
    """The path names a deployment that this server does not have."""

    row = ErrorRow(404, "not_found", 404, INVALID, "deployment_not_found")


class TaskUnsupported(RequestRejected):
    """The deployment or the adapter does not give what the request asks for."""

    row = ErrorRow(422, "validation", 400, INVALID, "unsupported_task")


class RouteNotBuilt(RequestRejected):
    """The route belongs to the platform's interface, but not to this server."""

    row = ErrorRow(501, "not_found", 501, INVALID, "not_part_of_this_server")


class InsufficientPermissions(RequestRejected):
    """The route is for operators, and the caller is not known to be one."""

    row = ErrorRow(403, "permission", 403, INVALID, "insufficient_permissions")


class HostNotAllowed(RequestRejected):
    """The header `Host` names a host that this server does not answer to."""

    row = ErrorRow(403, "permission", 403, INVALID, "host_not_allowed")


class OriginNotAllowed(RequestRejected):
    """The request comes from a web page that may not use this server."""

    row = ErrorRow(403, "permission", 403, INVALID, "origin_not_allowed")


class RequestTimedOut(RequestRejected):
    """A request did not arrive whole in its time."""

    row = ErrorRow(408, "validation", 408, INVALID, "request_timeout")


class NotHttp(RequestRejected):
    """The bytes are no HTTP request, or two readers could take them for different ones."""

    row = ErrorRow(400, "validation", 400, INVALID, "invalid_http")


class HeadTooLarge(RequestRejected):
    """The request line and the headers, or the trailers, have more bytes than the limit."""

    row = ErrorRow(431, "validation", 431, INVALID, "head_too_large")


class AdapterReferenceInvalid(RequestRejected):
    """The adapter's id or source is malformed, unknown or switched off."""

    row = ErrorRow(422, "validation", 400, INVALID, "adapter_reference_invalid")


class InvalidApiKey(RequestRejected):
    """The key is missing, malformed, unknown, expired or revoked."""

    row = ErrorRow(401, "authentication", 401, INVALID, "invalid_api_key")


class TenantMismatch(RequestRejected):
    """The key belongs to another tenant than the one in the path."""

    row = ErrorRow(403, "permission", 403, INVALID, "tenant_mismatch")


class TenantSuspended(RequestRejected):
    """The tenant has been suspended by the operator."""

    row = ErrorRow(403, "permission", 403, INVALID, "tenant_suspended")


class LimitExceeded(RequestRejected):
    """A limit of the tenant or the key is reached, and time lifts it."""

    row = ErrorRow(429, "rate_limited", 429, "requests", "rate_limit_exceeded", retry_after_s=1)

    def __init__(self, message: str, *, parameter: str | None = None, wait_s: float | None = 1.0) -> None:
        """Create the error. `wait_s` None: the request asks for more than the whole limit, and has to be changed."""
        super().__init__(message, parameter=parameter)
        self._wait_s = wait_s
        self.headers: dict[str, str] = {}  # the `x-ratelimit-…` headers of the refused caller

    @property
    def retry_after_s(self) -> float | None:
        return self._wait_s


class RequestRateExceeded(LimitExceeded):
    """The tenant or the key sends more requests a minute than it may."""


class TokenRateExceeded(LimitExceeded):
    """The tenant or the key uses more tokens a minute, prompt and budget together, than it may."""

    row = ErrorRow(429, "rate_limited", 429, "tokens", "rate_limit_exceeded", retry_after_s=1)


class StreamLimitExceeded(LimitExceeded):
    """The tenant or the key has more requests at one time than it may."""


class QuotaExhausted(RequestRejected):
    """The credit, a monthly limit or a budget is used up."""

    row = ErrorRow(429, "rate_limited", 429, "insufficient_quota", "insufficient_quota")


class ResourceNotFound(RequestRejected):
    """The tenant, key, repository, version, price or invoice does not exist, or another tenant owns it."""

    row = ErrorRow(404, "not_found", 404, INVALID, "resource_not_found")


class NameTaken(RequestRejected):
    """The name is taken already."""

    row = ErrorRow(409, "validation", 409, INVALID, "name_taken")


class StateChanged(RequestRejected):
    """The state of the server is not the one that the request was made for. Nothing, or no further step, was done."""

    row = ErrorRow(409, "validation", 409, INVALID, "state_changed")


class StorageLimitExceeded(RequestRejected):
    """The tenant may store no more adapters, files, batches or bytes, or no adapter of that rank."""

    row = ErrorRow(403, "permission", 403, INVALID, "storage_limit_exceeded")


class SignupClosed(RequestRejected):
    """This server's operator makes the tenants (`control.signup_open` is off)."""

    row = ErrorRow(403, "permission", 403, INVALID, "signup_closed")
