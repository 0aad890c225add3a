"""The tables of the control plane. Money is whole nano-dollars, times are milliseconds since 1970 (UTC); both BIGINT.

Rows that edges copy carry the `revision` of their last change (see `revisions.py`), so that an edge asks for later
changes only. Rows of `ledger`, `credits` and `prices` are never changed: a correction is a further row.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

LIMIT_COLUMNS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_streams",
    "adapters",
    "adapter_bytes",
    "max_rank",
    "monthly_budget_nanousd",
)
"""The numbers of `tenancy.Limits`; NULL is no limit."""


def _number() -> Column[int]:
    """Number of a row: SQLite counts up in INTEGER columns only."""
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _limits() -> list[Column[Any]]:  # numbers, and a text
    limits_of_bases = Column("limits_of_bases", Text)  # JSON of `tenancy.Limits.bases`; NULL: no base has limits
    return [*(Column(name, BigInteger) for name in LIMIT_COLUMNS), limits_of_bases]


def _tenant() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), nullable=False)


def _tenant_key() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), primary_key=True)


revisions = Table(
    "revisions",
    metadata,
    Column("name", String(16), primary_key=True),  # `edges`, and the mark of the pepper
    Column("value", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(64), primary_key=True),  # the short code
    Column("number", BigInteger, nullable=False, unique=True),  # for clients that identify a tenant by an integer
    Column("uuid", String(36), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("email", String(320)),
    Column("plan", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("weight", Integer, nullable=False),
    *_limits(),
    Column("created_ms", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("weight >= 1", name="weight"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(8), primary_key=True),
    Column("origin", String(8), nullable=False, index=True),  # id of the first key of this one's rotations
    _tenant(),
    Column("name", String(200), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),  # sorted, joined by a blank
    Column("maker", String(8)),  # id of the key that made it, kept by rotation; NULL: the operator or a sign-up
    Column("issuer", String(8)),  # id of the key that received its secret: the maker, or the one that rotated it
    Column("successor", String(8)),  # id of the key that it was rotated into
    Column("limited_by", String(8)),  # origin of the key that set its limits; NULL: the operator, or there are none
    Column("last_used_ms", BigInteger),  # exact to about a minute
    Column("is_session", Boolean, nullable=False, server_default=false()),  # of the console
    *_limits(),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("revision", BigInteger, nullable=False, index=True),
    Index(None, "tenant"),
)

logins = Table(  # passwords of the console, one for each tenant
    "logins",
    metadata,
    _tenant_key(),
    Column("password_hash", String(200)),  # of `PasswordHasher.hashed`; NULL: there is a code, and no password yet
    Column("changed_ms", BigInteger, nullable=False),
    Column("code_hash", String(64)),  # of a one-time code that sets a new password
    Column("code_expires_ms", BigInteger),
)

audit = Table(  # one row for each act of an operator or a key, written with the act, never changed, removed by age
    "audit",
    metadata,
    _number(),
    Column("at_ms", BigInteger, nullable=False),
    Column("tenant", String(64)),  # owner of the object; NULL: none
    Column("actor_tenant", String(64)),
    Column("actor_key", String(8)),
    Column("address", String(64)),
    Column("request_id", String(128)),
    Column("verb", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("before", Text),  # JSON
    Column("after", Text),
    Index(None, "tenant", "number"),
    Index(None, "tenant", "at_ms"),
    Index(None, "at_ms"),
)

credits = Table(  # grants of credit: the balance is their sum less the charges of the ledger
    "credits",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),  # chosen by the caller, so that a repetition changes nothing
    _tenant(),
    Column("nanousd", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "tenant"),
)

prices = Table(
    "prices",
    metadata,
    Column("base", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("effective_ms", BigInteger, nullable=False),
    Column("input_nanousd", BigInteger, nullable=False),  # for one token
    Column("output_nanousd", BigInteger, nullable=False),
    Column("cached_input_nanousd", BigInteger, nullable=False),  # for one prompt token from the prefix cache
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("input_nanousd >= 0 AND output_nanousd >= 0", name="amounts"),
)

ledger = Table(  # one row for each request (`usage.UsageRecord`), inserted once by its id, never changed
    "ledger",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),
    _tenant(),
    Column("key", String(8)),
    Column("request_id", String(128), nullable=False),
    Column("edge", String(64), nullable=False),
    Column("base", String(200), nullable=False),
    Column("adapter", Text),
    Column("adapter_source", String(16)),
    Column("adapter_owner", String(64)),
    Column("adapter_digest", String(64)),
    Column("opened_ms", BigInteger, nullable=False),
    Column("booked_ms", BigInteger, nullable=False),  # decides on its month: late rows belong to the open one
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("charged_prompt_tokens", BigInteger, nullable=False),
    Column("charged_completion_tokens", BigInteger, nullable=False),
    Column("num_sequences", Integer, nullable=False),
    Column("finish_reason", String(32), nullable=False),
    Column("tier", String(16)),
    Column("queue_us", BigInteger),
    Column("load_us", BigInteger),
    Column("first_token_us", BigInteger),
    Column("total_us", BigInteger),
    Column("price_version", Integer),  # NULL: the base had no price, and the row costs nothing
    Column(
        "input_nanousd", BigInteger, nullable=False
    ),  # copied from the price, so that an invoice needs no other table
    Column("output_nanousd", BigInteger, nullable=False),
    Column("cost_nanousd", BigInteger, nullable=False),
    Column("corrects", String(64)),  # id of the row that this one corrects; its counts and its cost may be negative
    Column("corrects_month", Integer),  # the month of the row that is corrected
    Column("reason", String(200)),  # of a correction
    Column("author", String(64)),  # id of the key that made a correction, or `admin` without one
    Column("received_ms", BigInteger, nullable=False),
    Column("charged_cached_tokens", BigInteger, nullable=False, server_default="0"),  # of charged_prompt_tokens
    Column("cached_input_nanousd", BigInteger),  # copied from the price; NULL: an older row, which costs input_nanousd
    Column("alias", String(200)),  # the alias that the request named, as `repo/alias`
    Column("is_shadow", Boolean, nullable=False, server_default=false()),
    Column("deployment", String(64)),  # name of the dedicated deployment; NULL: a shared one
    Column("seconds", BigInteger),  # whole seconds of a replica, which the row bills; NULL: a row of tokens
    Column("hourly_nanousd", BigInteger),  # price of an hour of a replica; NULL: a row of tokens
    Index(None, "tenant", "booked_ms"),
    Index(None, "booked_ms"),
    Index(None, "corrects"),
    Index(None, "edge"),
    Index(None, "received_ms"),
    Index(None, "adapter_owner", "alias", "booked_ms"),
)

invoice_rules = Table(  # rules of invoices, each with its first moment: see `invoices.InvoiceRule`
    "invoice_rules",
    metadata,
    Column("rule", Integer, primary_key=True, autoincrement=False),
    Column("since_ms", BigInteger, nullable=False),
)

spending = Table(  # sums of the ledger's costs, since balances are read more often than rows are added
    "spending",
    metadata,
    _tenant_key(),
    Column("key", String(8), primary_key=True),  # empty: no key
    Column("edge", String(64), primary_key=True),
    Column("month", Integer, primary_key=True),  # UTC, 202611, of `booked_ms`
    Column("cost_nanousd", BigInteger, nullable=False),
)

leases = Table(  # leases of edges: parts of a tenant's credit, or of the monthly budget of one of its keys
    "leases",
    metadata,
    Column("edge", String(64), primary_key=True),
    _tenant_key(),
    Column("key", String(8), primary_key=True),  # empty: of the tenant's credit
    Column("granted_nanousd", BigInteger, nullable=False),  # total since the start of the edge
    Column("expires_ms", BigInteger, nullable=False),
    Index(None, "tenant"),
)

repositories = Table(
    "repositories",
    metadata,
    _number(),
    Column("uuid", String(36), nullable=False, unique=True),
    _tenant(),
    Column("name", String(128), nullable=False),
    Column("description", Text, nullable=False),
    Column("is_public", Boolean, nullable=False),
    Column("last_version", Integer, nullable=False),  # AUTOINCREMENT: no number is used twice
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Column("revision", BigInteger, nullable=False, index=True),
    UniqueConstraint("tenant", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(16), nullable=False),  # uploading, ready, archived, failed, deleted
    Column("base", String(200), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),  # of the weights' file
    Column("source_url", Text),  # source of a copy; NULL: uploaded
    Column("error", Text),
    Column("created_by", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("is_withheld", Boolean, nullable=False, server_default=false()),  # archived by the operator
)

version_reports = Table(  # separate from `versions`, whose rows are read whole for every list
    "version_reports",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("report", Text, nullable=False),  # JSON, as `adapters/report.py` has it
)

aliases = Table(
    "aliases",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),  # of several, the one with the largest share
    Column("rule", Text),  # JSON of `rollouts.Rollout`; NULL: the alias stands for `version` alone
    Column("history", Text),  # JSON of the rules before, the latest last; NULL: none
)

evaluations = Table(  # the questions of a repository, which decide on promotions
    "evaluations",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("metric", String(16), nullable=False),
    Column("questions", Text, nullable=False),  # JSON lines
    Column("guards", Text, nullable=False),  # JSON list of aliases
    Column("max_tokens", Integer, nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", String(64), primary_key=True),
    _tenant(),
    Column("repo", String(128), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("current", Integer),  # NULL: no version had the alias
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("batch", String(64), nullable=False),
    Column("report", Text),  # JSON
    Column("is_forced", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("evaluation", Text, nullable=False),  # JSON of metric and questions until the end, empty then
    Index(None, "tenant", "repo", "created_ms"),
)

shares = Table(
    "shares",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("tenant", String(64), primary_key=True),  # a tenant of that name need not exist
)

deployments = Table(
    "deployments",
    metadata,
    _number(),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("tenant", String(64), ForeignKey("tenants.id")),  # NULL: shared by all
    Column("name", String(128), nullable=False),
    Column("description", Text, nullable=False),
    Column("base", String(200), nullable=False),
    Column("kind", String(16), nullable=False),  # shared or dedicated
    Column("state", String(16), nullable=False),
    Column("min_replicas", Integer, nullable=False),
    Column("max_replicas", Integer, nullable=False),
    Column("cooldown_s", Integer, nullable=False),
    Column("hourly_nanousd", BigInteger, nullable=False),
    Column("config", Text, nullable=False),  # JSON of the client
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Column("detail", Text, nullable=False, server_default=""),  # why it is in that state
    Column("failures", Integer, nullable=False, server_default="0"),  # starts that failed one after the other
    Column("retry_ms", BigInteger, nullable=False, server_default="0"),  # no start before this moment
    Column("used_ms", BigInteger, nullable=False, server_default="0"),  # last request; 0: none
    Column("replica_bytes", BigInteger, nullable=False, server_default="0"),  # memory of one replica; 0: not planned
    Column("revision", BigInteger, nullable=False, server_default="0", index=True),
    Column("key", String(8)),  # id of the key whose budgets count its seconds; NULL: none does
    Column("old_starts", BigInteger, nullable=False, server_default="0"),  # of replicas whose rows are removed
    Column("old_failures", BigInteger, nullable=False, server_default="0"),  # those of them that failed
    UniqueConstraint("tenant", "name"),
)

placements = Table(  # one row for each start of a replica of a deployment: its bill until all is billed, removed by age
    "placements",
    metadata,
    _number(),
    Column("id", String(36), nullable=False, unique=True),
    Column("deployment", BigInteger, ForeignKey("deployments.number"), nullable=False),
    _tenant(),
    Column("name", String(128), nullable=False),  # of the deployment, for the bill
    Column("base", String(200), nullable=False),
    Column("slot", Integer, nullable=False),  # from 0 on; a live replica has it alone
    Column("placer", String(64), nullable=False),  # id of the placer that runs it
    Column("state", String(16), nullable=False),  # starting, ready, draining, ended
    Column("form", String(16), nullable=False),  # digest of the settings that it was started with
    Column("url", Text, nullable=False),
    Column("hourly_nanousd", BigInteger, nullable=False),  # price in force
    Column("begun_ms", BigInteger, nullable=False),
    Column("since_ms", BigInteger, nullable=False),  # moment of the last change of its state
    Column("seen_ms", BigInteger, nullable=False),  # last moment at which its process was seen
    Column("ready_ms", BigInteger),  # billed from here; NULL: it never was ready
    Column("left_ms", BigInteger),  # billed up to here; NULL: it is ready
    Column("ended_ms", BigInteger),  # NULL: its process may run
    Column("billed_s", BigInteger),  # first second, since 1970, that no row of the ledger bills
    Column("reason", Text, nullable=False),
    Column("has_failed", Boolean, nullable=False, server_default=false()),  # its process ended unasked
    Index(
        "ix_placements_live",
        "deployment",
        "slot",
        unique=True,
        sqlite_where=text("ended_ms IS NULL"),
        postgresql_where=text("ended_ms IS NULL"),
    ),
    Index(None, "tenant"),
)

stored = Table(  # files and responses of tenants; the bytes lie in the folder of blobs
    "stored",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),  # an open server takes names that no row of `tenants` has
    Column("kind", String(16), nullable=False),  # file or response
    Column("bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("is_whole", Boolean, nullable=False),  # false: it grows, and no caller sees it
    Column("name", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Index(None, "tenant", "kind"),
    Index(None, "expires_ms"),
)

batches = Table(
    "batches",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("input_id", String(64), nullable=False),
    Column("output_id", String(64), nullable=False),
    Column("error_id", String(64), nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("ended_ms", BigInteger),  # NULL: it has not ended
    Column("facts", Text, nullable=False),  # JSON of `stored.StoredBatch`
    Column("lease", BigInteger, nullable=False),  # counts the edges that took it: a write of an earlier one is refused
    Column("lease_edge", String(64), nullable=False),  # the last edge that took it; empty: none
    Column("lease_ms", BigInteger, nullable=False),  # the end of the last edge's lease
    Index(None, "tenant"),
)
