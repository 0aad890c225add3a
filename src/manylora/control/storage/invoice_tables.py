"""Tables of invoices with numbers, and of what was exported to whom."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from manylora.control.storage.tables import metadata

invoice_series = Table(  # the last number of each issuer, taken in the transaction that uses it: no number is left out
    "invoice_series",
    metadata,
    Column("issuer", String(32), primary_key=True),
    Column("last", Integer, nullable=False),
)

invoice_documents = Table(
    "invoice_documents",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("issuer", String(32), nullable=False),
    Column("number", Integer),  # NULL: a draft
    Column("tenant", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("kind", String(16), nullable=False),  # invoice or credit_note
    Column("state", String(16), nullable=False),  # draft, final, paid or void
    Column("zone", String(64), nullable=False),
    Column("begin_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("tax_basis_points", Integer, nullable=False),
    Column("cut_ms", BigInteger),  # rows received later are of a later invoice; NULL: a draft
    Column("corrects", String(32)),  # the invoice of a credit note
    Column("body", Text),  # JSON, written once; NULL: a draft
    Column("due_nanousd", BigInteger, nullable=False),  # of the body; 0: a draft
    Column("created_ms", BigInteger, nullable=False),
    Column("settled_ms", BigInteger),  # when it was paid or made void
    Column("note", String(200), nullable=False),  # of its payment or its end
    UniqueConstraint("issuer", "number"),
    Index(None, "tenant"),
    Index(None, "created_ms", "id"),
)

export_cursors = Table(
    "export_cursors",
    metadata,
    Column("sink", String(64), primary_key=True),
    Column("sent_ms", BigInteger, nullable=False),  # all rows received before this moment were sent
)
