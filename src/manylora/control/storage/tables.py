"""The tables of the control plane. Money is whole nano-dollars, times are milliseconds since 1970 (UTC); both BIGINT.

Everything that an edge has to know carries the `revision` of its last change (see `revisions.py`), so that an edge asks
for what is new since the last one it saw. Rows of `ledger`, `credits` and `prices` are never changed: a correction is a
row more.
"""

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
"""The fields of `tenancy.Limits`; NULL is no limit."""


def _number() -> Column[int]:
    """A row's own number: SQLite counts up in INTEGER columns only."""
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _limits() -> list[Column[int]]:
    return [Column(name, BigInteger) for name in LIMIT_COLUMNS]


def _tenant() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), nullable=False)


def _tenant_key() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), primary_key=True)


revisions = Table(
    "revisions",
    metadata,
    Column("name", String(16), primary_key=True),  # one row, `edges`
    Column("value", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(64), primary_key=True),  # the short code
    Column("number", BigInteger, nullable=False, unique=True),  # for clients that want a tenant to be an integer
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
    Column("origin", String(8), nullable=False, index=True),  # id of the first key that this one came of by rotation
    _tenant(),
    Column("name", String(200), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),  # sorted, joined by a blank
    Column(
        "maker", String(8)
    ),  # id of the key it was made with, kept by rotation; NULL: the operator's, or a sign-up's
    Column("issuer", String(8)),  # id of the key that was shown its secret: the maker, or the one that rotated it
    Column("successor", String(8)),  # id of the key that it was rotated into; until its end it is in its grace
    Column("limited_by", String(8)),  # origin of the key that set its limits; NULL: the operator did, or it has none
    Column("last_used_ms", BigInteger),  # within about a minute
    *_limits(),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("revision", BigInteger, nullable=False, index=True),
    Index(None, "tenant"),
)

audit = Table(  # a row an act of an operator or a key, written with the act, never changed, removed by age
    "audit",
    metadata,
    _number(),
    Column("at_ms", BigInteger, nullable=False),
    Column("tenant", String(64)),  # whose object; NULL: of no tenant
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

credits = Table(  # grants and corrections: what a tenant may spend is their sum less what the ledger charged
    "credits",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),  # given by whoever grants, so that twice is once
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
    Column("input_nanousd", BigInteger, nullable=False),  # a token
    Column("output_nanousd", BigInteger, nullable=False),
    Column("cached_input_nanousd", BigInteger, nullable=False),  # a prompt token that came from the prefix cache
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("input_nanousd >= 0 AND output_nanousd >= 0", name="amounts"),
)

ledger = Table(  # one row a request (`usage.UsageRecord`), inserted once by its id, never changed
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
    Column("booked_ms", BigInteger, nullable=False),  # decides on its month: late rows come into the one that is open
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
    Column("input_nanousd", BigInteger, nullable=False),  # the price's, so that an invoice needs no other table
    Column("output_nanousd", BigInteger, nullable=False),
    Column("cost_nanousd", BigInteger, nullable=False),
    Column("corrects", String(64)),  # id of the row that this one corrects; its counts and its cost may be negative
    Column("corrects_month", Integer),  # the month of the row that is corrected
    Column("reason", String(200)),  # a correction's
    Column("author", String(64)),  # id of the key that made a correction, or `admin` where none was asked for
    Column("received_ms", BigInteger, nullable=False),
    Column("charged_cached_tokens", BigInteger, nullable=False, server_default="0"),  # of charged_prompt_tokens
    Column("cached_input_nanousd", BigInteger),  # the price's; NULL: a row of before there was one, as input_nanousd
    Index(None, "tenant", "booked_ms"),
    Index(None, "booked_ms"),
    Index(None, "corrects"),
    Index(None, "edge"),
)

invoice_rules = Table(  # how invoices are made, from which moment on: see `invoices.InvoiceRule`
    "invoice_rules",
    metadata,
    Column("rule", Integer, primary_key=True, autoincrement=False),
    Column("since_ms", BigInteger, nullable=False),
)

spending = (
    Table(  # sums of the ledger's costs, kept in its transactions: a credit is asked for more often than it is spent
        "spending",
        metadata,
        _tenant_key(),
        Column("key", String(8), primary_key=True),  # empty: without one
        Column("edge", String(64), primary_key=True),
        Column("month", Integer, primary_key=True),  # UTC, 202611, of `booked_ms`
        Column("cost_nanousd", BigInteger, nullable=False),
    )
)

leases = Table(  # set aside for one edge: of a tenant's credit, or of what one of its keys may spend in a month
    "leases",
    metadata,
    Column("edge", String(64), primary_key=True),
    _tenant_key(),
    Column("key", String(8), primary_key=True),  # empty: of the tenant's credit
    Column("granted_nanousd", BigInteger, nullable=False),  # in all, since the edge began
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
    Column("last_version", Integer, nullable=False),  # numbers are never given twice
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
    Column("source_url", Text),  # where it was registered from; NULL: uploaded
    Column("error", Text),
    Column("created_by", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("is_withheld", Boolean, nullable=False, server_default=false()),  # archived by the operator
)

version_reports = Table(  # apart from `versions`, whose rows are read whole for every list
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
    Column("version", Integer, nullable=False),
)

shares = Table(
    "shares",
    metadata,
    Column("repository", BigInteger, ForeignKey("repositories.number"), primary_key=True),
    Column("tenant", String(64), primary_key=True),  # a name that perhaps no tenant has
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
    Column("config", Text, nullable=False),  # JSON as the client gave it
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    UniqueConstraint("tenant", "name"),
)
