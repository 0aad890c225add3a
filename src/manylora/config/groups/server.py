"""Settings of the HTTP edge."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP edge: its address, its bounds, and the callers that it accepts."""

    host: str = setting(
        "127.0.0.1",
        text="""
        Address on which the server listens.
        """,
    )
    port: int = setting(
        8080,
        low=0,
        high=65_535,
        text="""
        Port on which the server listens; 0 takes a free one.
        """,
    )
    trace_url: str = setting(
        "",
        check=checks.url_or_empty,
        text="""
        Address of an OpenTelemetry collector for traces over OTLP/HTTP, such as `http://127.0.0.1:4318/v1/traces`: one
        span a request ([traces](operating.md#traces)). It needs `pip install 'manylora[otel]'`. Empty: no traces.
        """,
    )
    trace_share: float = setting(
        1.0,
        low=0,
        high=1,
        text="""
        Share of the requests with a span, of those without a trace of the caller's. A caller's `traceparent` decides
        itself.
        """,
    )
    max_body_bytes: int = setting(
        2 * MIB,
        low=1,
        text="""
        Largest request body in bytes. A larger body gets 413.
        """,
    )
    max_concurrent_requests: int = setting(
        512,
        low=1,
        text="""
        Sequences in the server at once: `n`, `best_of` and several prompts count one each. One request has half of them
        at most, and begins its next sequence as one ends. A request that finds no place gets 503 `overloaded` with
        Retry-After. With several bases each has this number of places, so that a full one leaves the others free.
        """,
    )
    background_responses: int = setting(
        256,
        low=1,
        text="""
        Responses with `background` that a server has queued or under way at once; a further one gets 503 `overloaded`
        with Retry-After.
        """,
    )
    tenant_background_responses: int = setting(
        64,
        low=1,
        text="""
        The same of one tenant; a further one gets 429 `rate_limit_exceeded` with Retry-After.
        """,
    )
    tenant_response_followers: int = setting(
        256,
        low=1,
        text="""
        Streams of responses with `background` that a server shows one tenant at once, also of responses that other
        servers run; a further one gets 429 `rate_limit_exceeded` with Retry-After.
        """,
    )
    max_best_of: int = setting(
        2,
        low=1,
        text="""
        Largest `best_of`.
        """,
    )
    max_n: int = setting(
        8,
        low=1,
        text="""
        Largest `n` on the OpenAI routes.
        """,
    )
    max_stop_sequences: int = setting(
        4,
        low=1,
        text="""
        Largest number of stop strings in one request.
        """,
    )
    max_adapters: int = setting(
        8,
        low=1,
        text="""
        Largest number of adapters that one request applies together (`adapters`). Each row of the request costs as much
        as one row of each of them.
        """,
    )
    overlong_max_new_tokens: str = setting(
        "clamp",
        choices=("clamp", "reject"),
        text="""
        Treatment of a native request whose budget passes the window: `clamp` cuts the budget to the room left, `reject`
        answers 422.
        """,
    )
    cors_allow_origins: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.web_rule,
        text="""
        Origins of web pages that may use this server, such as `["https://app.example"]`; a request from any other web
        page gets 403 `origin_not_allowed`. Where no keys are needed, pages of this machine (`http://localhost:3000`)
        and listed pages may infer and read models, and nothing else. `*` allows all pages where keys are needed, and no
        further page elsewhere. Credentials mode is never allowed. Clients outside a browser send no Origin. Its older
        name, `server.cors_allow_origin` with one Origin, works until release 0.3.
        """,
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.web_rule,
        text="""
        Further names that requests may have in their header `Host`, without a port, such as `["llm.example",
        ".cluster.local"]`; `.name` stands for all names below it, `*` for every name. The server always answers to
        addresses (`10.1.2.3:8080`, `[::1]`), `localhost`, the machine's own host name and `server.host`. Probes by the
        address of a pod therefore need no entry; the name of a service, of a container or of a proxy does. Other hosts
        get 403 `host_not_allowed`: otherwise a web page whose name resolves to this machine could read everything.
        """,
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.web_rule,
        text="""
        Addresses and networks of proxies in front of this server, such as `["10.0.0.0/8", "127.0.0.1"]`. The server
        believes `X-Forwarded-For`, `Forwarded`, `X-Real-IP`, `X-Forwarded-Proto` and `X-Forwarded-Host` from these
        addresses only: the caller is the last address outside them. The server ignores headers that contradict each
        other. A proxy must write the header itself, or add to it.
        """,
    )
    public_url: str = setting(
        "",
        check=checks.url_or_empty,
        text="""
        Address at which clients reach this server, such as `https://llm.example/api`: the beginning of the signed
        addresses of uploads. Empty: the address of the request at hand. A separate control plane takes it from the
        server that passes a request on.
        """,
    )
    head_timeout_s: float = setting(
        20.0,
        low=0.001,
        text="""
        Seconds for the head of a request, from its first byte or from the start of its connection; then the connection
        closes with 408. A connection may wait 75 s for its next request.
        """,
    )
    body_idle_s: float = setting(
        60.0,
        low=0.001,
        text="""
        Seconds without a byte after which the server gives up a request whose body is incomplete.
        """,
    )
    max_connections: int = setting(
        0,
        low=0,
        text="""
        Largest number of connections; one address that is neither this machine nor a trusted proxy may have half of
        them. A further connection closes at once. 0: three quarters of the files that the process may open.
        """,
    )
    admin_open: bool = setting(
        False,
        text="""
        Whether every caller that reaches the port may manage adapters (`/v1/adapters`). `false`: only programs on the
        server's own machine may, which call from a loopback address, not through a proxy and not from a web page.
        `true` belongs behind a proxy that authenticates callers. The checks of hosts and web pages hold either way.
        """,
    )
    auth: str = setting(
        "auto",
        choices=("auto", "on", "off"),
        text="""
        Whether requests need a key: `on`, `off`, or `auto`, which means off on a loopback address and on everywhere
        else. Without keys all usage belongs to the tenant `default`, or to the tenant in the path of a deployment.
        """,
    )
    allow_open: bool = setting(
        False,
        text="""
        Whether `server.auth` may be off on an address that other machines can reach. `false`: such a server does not
        start.
        """,
    )
    drain_s: float = setting(
        30.0,
        low=0,
        text="""
        Seconds for which running requests go on after SIGTERM or Ctrl-C; new requests get 503. A second signal ends
        them at once, each with its error.
        """,
    )
    health_stall_s: float = setting(
        30.0,
        low=0.001,
        text="""
        Seconds after which `/health` turns 503: the engine has work and has not moved for so long, or requests wait for
        adapters whose loader has not answered for so long beyond `adapters.load_timeout_s`, whatever other requests
        generate meanwhile. One slow source is therefore no outage: its load has its own limit. The server kills and
        restarts an engine process that has work, sends nothing and uses no processor for so long; one that sends
        nothing and computes, as in a long step, gets ten times as long. Its requests end with 503
        `deployment_unavailable`.
        """,
    )
    stream_head_wait_s: float = setting(
        10.0,
        low=0.001,
        text="""
        Seconds for which the server holds back the status line of a stream until its first token, so that early
        failures get their own status.
        """,
    )
    keepalive_s: float = setting(
        15.0,
        low=0.001,
        text="""
        Seconds without an event after which a stream gets a comment line, so that proxies keep it open.
        """,
    )
