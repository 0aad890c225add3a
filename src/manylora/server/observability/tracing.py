"""Traces in OpenTelemetry's form: one span a request, sent to a collector over OTLP/HTTP.

The library is the extra `otel`. The names of attributes are those of OpenTelemetry's semantic conventions where these
have one. No attribute has a prompt, a completion, a key's secret or a token id.

Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/, …/gen-ai/gen-ai-spans/, and W3C Trace Context
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from manylora import __version__
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import ConfigInvalid

LIBRARIES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
EXPORT_WAIT_S = 5.0
"""Limit of one export, and of the last one at the server's end."""
PARENT_HEADERS = ("traceparent", "tracestate")
SERVER_FAILURE = 500
ATTRIBUTES: Mapping[str, str] = {
    "adapter": "manylora.adapter",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
    "finish_reason": "gen_ai.response.finish_reasons",
    "queue_ms": "manylora.queue_ms",
    "adapter_load_ms": "manylora.adapter_load_ms",
    "time_to_first_token_ms": "manylora.time_to_first_token_ms",
    "inference_ms": "manylora.inference_ms",
    "error": "error.type",
}
"""Attribute of each field of a request's log line that a span has; the other fields are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequest:
    """The facts of a request for its span.

    name     of the span: of few values, so that it has no name of a tenant
    path     as in the log line: without its query
    parents  the caller's `traceparent` and `tracestate`, as far as it has sent them
    noted    the fields of its log line
    """

    name: str
    method: str
    path: str
    status: int
    request_id: str
    tenant: str | None
    key: str | None
    duration_s: float
    parents: Mapping[str, str]
    noted: Mapping[str, object]


def refuse_missing_library(settings: ServerConfig) -> None:
    """Raise `ConfigInvalid` if traces are asked for and their library is not installed."""
    if not settings.trace_url:
        return
    for name in LIBRARIES:
        if not _is_installed(name):
            raise ConfigInvalid(
                "server.trace_url asks for traces, whose library is not installed: pip install 'manylora[otel]'"
            )


def open_tracer(settings: ServerConfig, clock: Clock) -> "RequestTracer | None":
    """Return the tracer of a server; None without `server.trace_url`. Raises as `refuse_missing_library`."""
    refuse_missing_library(settings)
    return RequestTracer(settings, clock) if settings.trace_url else None


class RequestTracer:
    """Makes a span of each request at its end. A thread of the library sends spans in batches and drops what it cannot.

    A trace that a caller has begun is continued, with the caller's decision on sampling.
    """

    def __init__(self, settings: ServerConfig, clock: Clock) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        resource = Resource.create({"service.name": "manylora", "service.version": __version__})
        sampler = ParentBasedTraceIdRatio(settings.trace_share)
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=settings.trace_url, timeout=EXPORT_WAIT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("manylora", __version__)
        self._clock = clock

    def note(self, request: EndedRequest) -> None:
        """Record the span of a request that has ended now."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ended_s = self._clock.wall_s()
        begun_s = ended_s - request.duration_s
        span = self._tracer.start_span(
            request.name,
            context=TraceContextTextMapPropagator().extract(request.parents),
            kind=SpanKind.SERVER,
            attributes=_attributes(request),
            start_time=_nanoseconds(begun_s),
        )
        for name, at_ms in _moments(request.noted).items():
            span.add_event(name, timestamp=_nanoseconds(begun_s + 1e-3 * at_ms))
        if request.status >= SERVER_FAILURE:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(ended_s))

    def close(self) -> None:
        """Send what is left, for `EXPORT_WAIT_S` at most. A second call changes nothing."""
        self._provider.shutdown()


def _attributes(request: EndedRequest) -> dict[str, str | int | float | tuple[str, ...]]:
    found: dict[str, str | int | float | tuple[str, ...]] = {
        "http.request.method": request.method,
        "url.path": request.path,
        "http.response.status_code": request.status,
        "manylora.request_id": request.request_id,
    }
    if request.tenant is not None:
        found["manylora.tenant"] = request.tenant
    if request.key is not None:
        found["manylora.key_id"] = request.key
    for field, name in ATTRIBUTES.items():
        value = request.noted.get(field)
        if field == "finish_reason" and isinstance(value, str):
            found[name] = tuple(value.split(","))
        elif isinstance(value, str | int | float):
            found[name] = value
    return found


def _moments(noted: Mapping[str, object]) -> dict[str, float]:
    """Return milliseconds from the begin of a request to its first token, as far as it has one."""
    at_ms = noted.get("time_to_first_token_ms")
    has_token = isinstance(at_ms, float) and bool(noted.get("generated_tokens"))
    return {"first_token": at_ms} if has_token and isinstance(at_ms, float) else {}


def _nanoseconds(wall_s: float) -> int:
    return round(1e9 * wall_s)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
