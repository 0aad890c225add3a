"""Tables of wallets: the grants of a tenant, the parts of them that edges hold, and one row for each movement.

Rows of `wallet_entries` are never changed. `wallets`, the sums in `grants` and `wallet_holds` follow from them, and are
written in the same transactions, since balances are read more often than rows are added.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, String, Table

from manylora.control.storage.tables import metadata


def _number() -> Column[int]:
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _tenant() -> Column[str]:
    return Column("tenant", String(64), ForeignKey("tenants.id"), nullable=False)


grants = Table(  # credit that was given, with its terms and the sums of what became of it
    "grants",
    metadata,
    _number(),
    Column("id", String(64), nullable=False, unique=True),  # of the row of `credits`, or `refund-…` of a correction
    _tenant(),
    Column("kind", String(16), nullable=False),  # `wallet.GrantKind`
    Column("priority", Integer, nullable=False),  # the lowest is drawn first
    Column("nanousd", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),  # NULL: never
    Column("spent_nanousd", BigInteger, nullable=False),
    Column("expired_nanousd", BigInteger, nullable=False),
    CheckConstraint("spent_nanousd + expired_nanousd <= nanousd", name="left"),
    CheckConstraint("spent_nanousd >= 0 AND expired_nanousd >= 0", name="sums"),
    Index(None, "tenant"),
    Index(None, "expires_ms"),
)

wallets = Table(
    "wallets",
    metadata,
    Column("tenant", String(64), ForeignKey("tenants.id"), primary_key=True),
    Column("overdraft_nanousd", BigInteger, nullable=False),  # spent beyond all grants, and covered by none yet
    CheckConstraint("overdraft_nanousd >= 0", name="overdraft"),
)

wallet_holds = Table(  # parts of grants that the lease of an edge has set aside
    "wallet_holds",
    metadata,
    Column("edge", String(64), primary_key=True),
    Column("tenant", String(64), ForeignKey("tenants.id"), primary_key=True),
    Column("grant_number", BigInteger, ForeignKey("grants.number"), primary_key=True),
    Column("nanousd", BigInteger, nullable=False),
    CheckConstraint("nanousd > 0", name="amount"),
    Index(None, "tenant"),
)

wallet_entries = Table(
    "wallet_entries",
    metadata,
    _number(),
    _tenant(),
    Column("kind", String(16), nullable=False),  # `wallet.EntryKind`
    Column("grant_number", BigInteger, ForeignKey("grants.number")),  # NULL: of the overdraft
    Column("edge", String(64)),  # the holder, of a reserve, a release or a settlement
    Column("ref", String(64)),  # id of the ledger's row, or of the row of `credits`
    Column("nanousd", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("debt", BigInteger),  # number of the debt that a cover, or a settlement that gives back, pays
    Index(None, "tenant", "number"),
    Index(None, "ref"),
    Index(None, "debt"),
)

debts = Table(  # what no grant paid of a row of the ledger or of a withdrawal; the overdraft is what is left of them
    "debts",
    metadata,
    _number(),
    _tenant(),
    Column("kind", String(16), nullable=False),  # settle or withdraw
    Column("ref", String(64), nullable=False),  # id of the ledger's row, or of the row of `credits`
    Column("nanousd", BigInteger, nullable=False),
    Column("left_nanousd", BigInteger, nullable=False),
    Column("document", String(32)),  # the final invoice that asks for it; NULL: none does
    CheckConstraint("left_nanousd >= 0 AND left_nanousd <= nanousd", name="left"),
    Index(None, "tenant", "ref"),
    Index(None, "document"),
)
