"""Tables of budgets, of their alerts, and of the webhooks that carry alerts."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from manylora.control.storage.tables import metadata


def _tenant() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), nullable=False)


budgets = Table(
    "budgets",
    metadata,
    Column("id", String(8), primary_key=True),  # `b_` and six letters: no key has such an id
    _tenant(),
    Column("name", String(64), nullable=False),
    Column("key", String(8)),  # the origin of a key; NULL: of all keys
    Column("adapter", String(200)),  # a name, or a name with a version; NULL: of all adapters and the base
    Column("period", String(8), nullable=False),  # day or month
    Column("zone", String(64), nullable=False),
    Column("limit_nanousd", BigInteger, nullable=False),
    Column("is_hard", Boolean, nullable=False),
    Column("is_operators", Boolean, nullable=False),  # its tenant cannot remove it
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),  # NULL: it is in force
    Index(None, "tenant"),
)

budget_spending = Table(  # sums of the ledger's costs that count against a budget
    "budget_spending",
    metadata,
    Column("budget", String(8), ForeignKey("budgets.id"), primary_key=True),
    Column("period_ms", BigInteger, primary_key=True),  # the begin of the period
    Column("edge", String(64), primary_key=True),  # empty: usage that began before the budget, and corrections
    Column("cost_nanousd", BigInteger, nullable=False),
)

budget_alerts = Table(  # one row for each mark that a period reached, so that each alert goes out once
    "budget_alerts",
    metadata,
    Column("budget", String(8), ForeignKey("budgets.id"), primary_key=True),
    Column("period_ms", BigInteger, primary_key=True),
    Column("mark", Integer, primary_key=True),  # 50, 80, 100 percent; 0: a request was refused
    Column("at_ms", BigInteger, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    _tenant(),
    Column("url", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),  # NULL: it is in force
    Index(None, "tenant"),
)

webhook_messages = Table(
    "webhook_messages",
    metadata,
    Column("id", String(64), primary_key=True),  # the same at each attempt
    Column("webhook", String(32), ForeignKey("webhooks.id"), nullable=False),
    _tenant(),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),  # the bytes that are signed and sent
    Column("created_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),  # waiting, delivered or dead
    Column("attempts", Integer, nullable=False),
    Column("next_ms", BigInteger, nullable=False),
    Column("error", String(200), nullable=False),  # of the last attempt; empty: none
    Index(None, "state", "next_ms"),
    Index(None, "tenant", "state"),
    Index(None, "created_ms"),
)
