"""Every failure manylora reports, as one tree, each with its row in each HTTP dialect.

    ManyloraError
    ├── RequestRejected            the request itself is wrong; nothing was done
    │   ├── InvalidJson  InvalidParameter (ToolsRefused)  ContextLengthExceeded  TemplateFailed
    │   ├── BodyTooLarge  UnsupportedMediaType  MethodNotAllowed  RouteNotFound
    │   ├── DeploymentNotFound  TaskUnsupported  RouteNotBuilt  InsufficientPermissions
    │   ├── HostNotAllowed  OriginNotAllowed  RequestTimedOut  HeadTooLarge  NotHttp
    │   ├── AdapterReferenceInvalid  InvalidApiKey  TenantMismatch  TenantSuspended
    │   ├── LimitExceeded  RequestRateExceeded  TokenRateExceeded  StreamLimitExceeded  QuotaExhausted
    │   └── ResourceNotFound  NameTaken  StorageLimitExceeded  SignupClosed
    ├── AdapterError               the adapter cannot serve this request
    │   ├── AdapterNotFound  AdapterAccessDenied  AdapterIncompatible  AdapterUnsupported
    │   ├── AdapterCorrupt  AdapterUnsafeFormat  AdapterTooLarge  AdapterMergeInvalid
    │   ├── AdapterSourceUnavailable  AdapterLoadTimeout  AdapterCapacity  AdapterStorageUnavailable
    │   └── AdapterTextChanged  AdapterInUse (operators only)
    ├── ServiceError               the server cannot serve now
    │   ├── Overloaded  QueueTimeout  Unavailable  ControlUnavailable  UsageUnrecorded
    │   └── StorageUnavailable  EngineFault  IncompleteGeneration
    └── StartupError               the process cannot start
        └── ConfigInvalid  DataTooNew  MemoryPlanImpossible  ModelUnsupported  ModelNotFound  NativeBuildFailed

A row is (status, type) for the native (LoRAX-style) routes and for the OpenAI routes, and one stable `code` for both.
No other file knows a status number.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The HTTP reply for one kind of failure.

    native_status, native_type   status and `error_type` of LoRAX-style replies
    openai_status, openai_type   status and `error.type` of OpenAI-style replies
    code                         stable, the same in both
    retry_after_s                sent as `Retry-After` when not None
    """

    native_status: int
    native_type: str
    openai_status: int
    openai_type: str
    code: str
    retry_after_s: int | None = None


INVALID = "invalid_request_error"
SERVER = "server_error"


class ManyloraError(Exception):
    """Base of everything manylora raises on purpose. `message` is fit to be shown to the caller."""

    row: ClassVar[ErrorRow] = ErrorRow(500, "generation", 500, SERVER, "engine_error")

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the same request may succeed; None: the request has to be changed."""
        return self.row.retry_after_s

    @property
    def is_retryable(self) -> bool:
        """Return whether the same request may succeed later without a change."""
        return self.retry_after_s is not None


# ── the request is wrong ─────────────────────────────────────────────────────────────────────────────────────────


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
    """The credit or the month's budget is used up."""

    row = ErrorRow(429, "rate_limited", 429, "insufficient_quota", "insufficient_quota")


class ResourceNotFound(RequestRejected):
    """The tenant, key, repository, version, price or invoice does not exist, or another tenant owns it."""

    row = ErrorRow(404, "not_found", 404, INVALID, "resource_not_found")


class NameTaken(RequestRejected):
    """The name is taken already."""

    row = ErrorRow(409, "validation", 409, INVALID, "name_taken")


class StorageLimitExceeded(RequestRejected):
    """The tenant may store no more adapters, files, batches or bytes, or no adapter of that rank."""

    row = ErrorRow(403, "permission", 403, INVALID, "storage_limit_exceeded")


class SignupClosed(RequestRejected):
    """This server's operator makes the tenants (`control.signup_open` is off)."""

    row = ErrorRow(403, "permission", 403, INVALID, "signup_closed")


# ── the adapter cannot serve ─────────────────────────────────────────────────────────────────────────────────────


class AdapterError(ManyloraError):
    """The adapter named by the request cannot serve it. The base model is never used in its place."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_incompatible")


class AdapterNotFound(AdapterError):
    """The source does not know the adapter."""

    row = ErrorRow(404, "generation", 404, INVALID, "adapter_not_found")


class AdapterAccessDenied(AdapterError):
    """The source, or the caller's key, refuses access to the adapter."""

    row = ErrorRow(403, "generation", 403, INVALID, "adapter_access_denied")


class AdapterIncompatible(AdapterError):
    """Shapes, layers, vocabulary or target modules do not fit the base model."""


class AdapterUnsupported(AdapterError):
    """The adapter uses a PEFT feature that changes the result and that manylora does not apply."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_unsupported")


class AdapterCorrupt(AdapterError):
    """The config is missing or unreadable, a file is cut short, or weights or repeatedly logits are not finite."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_corrupt")


class AdapterUnsafeFormat(AdapterError):
    """The adapter has pickled weights only; they are never opened."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_unsafe_format")


class AdapterTooLarge(AdapterError):
    """The adapter is over the byte limit, the rank limit or the adapter memory."""

    row = ErrorRow(413, "generation", 413, INVALID, "adapter_too_large")


class AdapterMergeInvalid(AdapterError):
    """The members of a merge do not fit together under its strategy."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_merge_invalid")


class AdapterSourceUnavailable(AdapterError):
    """The source is down, or the network failed after retries."""

    row = ErrorRow(502, "generation", 502, SERVER, "adapter_source_unavailable", retry_after_s=5)


class AdapterLoadTimeout(AdapterError):
    """The adapter was not ready in time; its load goes on in the background."""

    row = ErrorRow(504, "generation", 504, SERVER, "adapter_load_timeout", retry_after_s=5)


class AdapterInUse(AdapterError):
    """The operator would evict an adapter that a request, a pin or a load holds on the device."""

    row = ErrorRow(409, "generation", 409, INVALID, "adapter_in_use")


class AdapterCapacity(AdapterError):
    """The adapter waited too long for its load, or for room beside the pinned adapters."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_capacity", retry_after_s=2)


class AdapterStorageUnavailable(AdapterError):
    """The server's disk is full or read-only, so no adapter can be loaded; those in memory are still served."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_storage_unavailable", retry_after_s=5)


class AdapterTextChanged(AdapterError):
    """The adapter was replaced, with another tokenizer or template, after the prompt was made; it is made again."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_changed", retry_after_s=1)


# ── the server cannot serve now ──────────────────────────────────────────────────────────────────────────────────


class ServiceError(ManyloraError):
    """The server cannot serve any such request now."""


class Overloaded(ServiceError):
    """The concurrency or queue limit is reached."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "overloaded", retry_after_s=1)


class QueueTimeout(ServiceError):
    """The request waited longer than `engine.max_queue_s` for its first step."""

    row = ErrorRow(504, "generation", 504, SERVER, "queue_timeout", retry_after_s=2)


class Unavailable(ServiceError):
    """The engine is starting, draining or was restarted; the request was not begun or may be repeated."""

    row = ErrorRow(503, "healthcheck", 503, SERVER, "deployment_unavailable", retry_after_s=2)


class ControlUnavailable(ServiceError):
    """The control plane does not answer, and the server's copy of its state is too old to use."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "control_unavailable", retry_after_s=2)


class UsageUnrecorded(ServiceError):
    """The disk takes no record of usage, so the server refuses requests that it could not charge."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "usage_unrecorded", retry_after_s=5)


class StorageUnavailable(ServiceError):
    """The disk takes no files or responses of tenants."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "storage_unavailable", retry_after_s=5)


class EngineFault(ServiceError):
    """The engine has failed during the generation."""


class IncompleteGeneration(ServiceError):
    """A stream or run ended without a last token."""

    row = ErrorRow(500, "incomplete_generation", 500, SERVER, "incomplete_generation")


# ── the process cannot start ─────────────────────────────────────────────────────────────────────────────────────


class StartupError(ManyloraError):
    """The process cannot start; the message says what to change."""

    row = ErrorRow(503, "healthcheck", 503, SERVER, "deployment_unavailable")


class ConfigInvalid(StartupError):
    """A setting is unknown, of the wrong type or out of range."""


NEWER_REMEDY = "start that version, or restore a backup that was made before the upgrade (docs/upgrading.md)"


class DataTooNew(StartupError):
    """Stored data are of a version that this program does not know; the message has both versions and the remedy."""


class MemoryPlanImpossible(StartupError):
    """Weights, KV cache and adapter bank do not fit the memory; the message has the arithmetic."""


class ModelUnsupported(StartupError):
    """The base model's config.json asks for something this engine does not compute."""


class ModelNotFound(StartupError):
    """The base model does not exist, or a file of it is missing."""


class NativeBuildFailed(StartupError):
    """The C++ kernels could not be compiled here; the message has the compiler's name or its output."""
