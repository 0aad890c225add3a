"""Settings of the control plane."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Tenants, keys, registry and ledger: their places, and the copies that edges keep. Money is in nano-dollars."""

    url: str = setting(
        "",
        check=checks.url_or_empty,
        text="""
        Address of the control plane that this server belongs to (`manylora control`), such as `http://10.0.0.5:8090`.
        Empty: the control plane runs inside this server.
        """,
    )
    edge_token: str = setting(
        "",
        text="""
        Secret by which servers and a separate control plane know each other, equal on both sides. `control.url` and
        `manylora control` require it.
        """,
    )
    host: str = setting(
        "127.0.0.1",
        text="""
        Address on which `manylora control` listens.
        """,
    )
    port: int = setting(
        8090,
        low=0,
        high=65_535,
        text="""
        Port on which `manylora control` listens.
        """,
    )
    dir: str = setting(
        "",
        text="""
        Folder of the control plane's database, its pepper and the uploads. Empty: `control` in the cache folder. It
        holds the customers' debts: keep it.
        """,
    )
    database_url: str = setting(
        "",
        text="""
        A database other than the SQLite file in `control.dir`: `postgresql+psycopg://user:password@host/name`.
        PostgreSQL needs `pip install 'manylora[postgres]'`; a server that starts without that driver says so in one
        line. A connection attempt ends after 10 s, or after `?connect_timeout=30` in the URL. When the database fails,
        the message at the start and the log line of a running server name the file, or the database and its host, and
        the cause, never the password. In a password `@` is written `%40`.
        """,
    )
    signup_open: bool = setting(
        False,
        text="""
        Whether callers without a key may make a tenant over `POST /v1/signup`. `false`: only the operator makes
        tenants.
        """,
    )
    signup_credit_nanousd: int = setting(
        25_000_000_000,
        low=0,
        text="""
        Credit of a new tenant in nano-dollars; 25,000,000,000 is $25.
        """,
    )
    signup_credit_days: int = setting(
        90,
        low=0,
        high=3660,
        text="""
        Days after which the unspent part of that credit expires; 0: never. Credit that the operator names for a tenant
        has no end unless the grant gives one.
        """,
    )
    signup_limits: tuple[str, ...] = setting(
        (
            "requests_per_minute=600",
            "concurrent_streams=64",
            "adapters=100",
            "adapter_bytes=10000000000",
        ),
        is_paths=False,
        check=checks.signup_limit,
        text="""
        Limits of a tenant that signs itself up, as `NAME=NUMBER` or, of a single base, `BASE/NAME=NUMBER`
        ([their names](keys-and-limits.md)), until the operator changes them. A tenant that the operator makes has the
        limits in that request, else none.
        """,
    )
    invoice_issuer: str = setting(
        "INV",
        check=checks.invoice_issuer,
        text="""
        Issuer of invoices with numbers: 1 to 32 letters, digits, `-` or `_`, with which each number begins
        (`INV-000001`). Each issuer has a series of its own, without a gap.
        """,
    )
    webhook_hosts: tuple[str, ...] = setting(
        (),
        is_paths=False,
        text="""
        Names of hosts, besides public ones, that webhooks of tenants may lead to: at any address and port, over http or
        https. Every other webhook needs https, port 443, and a name of which all addresses are public.
        """,
    )
    batch_price_percent: int = setting(
        50,
        low=0,
        high=100,
        text="""
        What a token of a batch costs, in percent of its base's price. Each price is a whole number of nano-dollars a
        token, rounded up. Rows of the ledger keep the price that they were written with.
        """,
    )
    free_bases: tuple[str, ...] = setting(
        (),
        is_paths=False,
        text="""
        Base models without a price. A server with keys refuses to start on a base that has neither a price nor a place
        in this list. The embedded default base is free.
        """,
    )
    deployment: str = setting(
        "",
        check=checks.deployment_or_empty,
        text="""
        The dedicated deployment whose replica this server is, as `TENANT/NAME`. It serves that tenant alone, runs no
        batches, and its tokens cost nothing, since its seconds are billed. The control plane sets it for the servers
        that it starts. Empty: the server is no replica of a deployment.
        """,
    )
    plan_weights: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.plan_weight,
        text="""
        Weights of plans in the fair scheduler, such as `["pro=4", "enterprise=16"]`. A tenant gets its plan's weight
        when it is made on that plan or moves to it without a weight of its own. A plan outside the list gives a new
        tenant the weight 1.
        """,
    )
    max_repositories: int = setting(
        10_000,
        low=0,
        text="""
        Largest number of repositories of one tenant; every server keeps all of them in memory. Deleted repositories
        count if they had a version, since the control plane keeps their numbers.
        """,
    )
    poll_s: float = setting(
        0.5,
        low=0.01,
        text="""
        Seconds between two questions of a server for changes in the control plane; for so long a server goes on serving
        a suspended tenant.
        """,
    )
    snapshot_max_age_s: float = setting(
        600.0,
        low=1,
        text="""
        Seconds for which a server uses its copy of the control plane's state while the control plane does not answer.
        Then requests that need a key get `control_unavailable`.
        """,
    )
    lease_nanousd: int = setting(
        50_000_000,
        low=1,
        text="""
        Part of a tenant's credit that a server sets aside at a time, in nano-dollars. Several servers cannot overspend
        a credit. Smaller parts mean more questions; with larger parts the last of a credit may wait in another server
        until that server gives it back.
        """,
    )
    lease_s: float = setting(
        1800.0,
        low=1,
        text="""
        Seconds for which credit stays set aside for a server that does not ask again. At least twice
        `control.snapshot_max_age_s`, so that credit outlasts an outage of the control plane.
        """,
    )
    audit_days: int = setting(
        400,
        low=1,
        text="""
        Days for which the control plane keeps a row of the audit table.
        """,
    )
    reads_per_minute: int = setting(
        600,
        low=1,
        text="""
        Largest number of reads (`GET`) of the control plane's routes by one tenant in a minute, over all its keys; a
        tenth of them, and at least 20, may come at once. A further read gets 429 `rate_limit_exceeded` with
        `Retry-After`. Reads do not count against the limits of inference, and keys with the scope `admin` have no such
        budget.
        """,
    )
