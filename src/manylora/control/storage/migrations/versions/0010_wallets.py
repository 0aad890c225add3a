"""Wallets: present credit becomes grants without an end, present charges and leases are drawn from them, oldest first.

Revision ID: 0010
Revises: 0009
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from manylora.clock import SystemClock

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PRIORITY = 25
UNLIMITED = ("default", "operator")
"""Tenants that need no credit: their charges are drawn from no grant."""


def upgrade() -> None:
    _create_tables()
    connection, now_ms = op.get_bind(), int(1000 * SystemClock().wall_s())
    tenants = connection.execute(sa.text("SELECT id FROM tenants ORDER BY id")).scalars().all()
    for tenant in tenants:
        _convert(connection, tenant, now_ms)


def _create_tables() -> None:
    op.create_table(
        "grants",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger()),
        sa.Column("spent_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("expired_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_grants")),
        sa.UniqueConstraint("id", name=op.f("uq_grants_id")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_grants_tenant_tenants")),
        sa.CheckConstraint("spent_nanousd + expired_nanousd <= nanousd", name=op.f("ck_grants_left")),
        sa.CheckConstraint("spent_nanousd >= 0 AND expired_nanousd >= 0", name=op.f("ck_grants_sums")),
    )
    op.create_index(op.f("ix_grants_tenant"), "grants", ["tenant"])
    op.create_index(op.f("ix_grants_expires_ms"), "grants", ["expires_ms"])
    op.create_table(
        "wallets",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("overdraft_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_wallets")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_wallets_tenant_tenants")),
        sa.CheckConstraint("overdraft_nanousd >= 0", name=op.f("ck_wallets_overdraft")),
    )
    op.create_table(
        "wallet_holds",
        sa.Column("edge", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("edge", "tenant", "grant_number", name=op.f("pk_wallet_holds")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_wallet_holds_tenant_tenants")),
        sa.ForeignKeyConstraint(["grant_number"], ["grants.number"], name=op.f("fk_wallet_holds_grant_number_grants")),
        sa.CheckConstraint("nanousd > 0", name=op.f("ck_wallet_holds_amount")),
    )
    op.create_index(op.f("ix_wallet_holds_tenant"), "wallet_holds", ["tenant"])
    op.create_table(
        "wallet_entries",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("grant_number", sa.BigInteger()),
        sa.Column("edge", sa.String(64)),
        sa.Column("ref", sa.String(64)),
        sa.Column("nanousd", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_wallet_entries")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_wallet_entries_tenant_tenants")),
        sa.ForeignKeyConstraint(
            ["grant_number"], ["grants.number"], name=op.f("fk_wallet_entries_grant_number_grants")
        ),
    )
    op.create_index(op.f("ix_wallet_entries_tenant_number"), "wallet_entries", ["tenant", "number"])
    op.create_index(op.f("ix_wallet_entries_ref"), "wallet_entries", ["ref"])


class _Books:
    """The grants of one tenant while its history is drawn from them."""

    def __init__(self, connection: sa.Connection, tenant: str, now_ms: int) -> None:
        self._connection, self._tenant, self._now_ms = connection, tenant, now_ms
        self.left: dict[int, int] = {}

    def enter(self, kind: str, nanousd: int, grant: int | None, edge: str | None = None) -> None:
        self._write(
            "INSERT INTO wallet_entries (tenant, kind, grant_number, edge, ref, nanousd, at_ms) "
            "VALUES (:tenant, :kind, :grant, :edge, :ref, :nanousd, :now)",
            {"kind": kind, "grant": grant, "edge": edge, "ref": "before", "nanousd": nanousd},
        )

    def grant(self, grant_id: str, kind: str, nanousd: int, reason: str, created_ms: int) -> None:
        values = {"id": grant_id, "kind": kind, "nanousd": nanousd, "reason": reason, "created": created_ms}
        self._write(
            "INSERT INTO grants (id, tenant, kind, priority, nanousd, reason, created_ms, spent_nanousd, "
            f"expired_nanousd) VALUES (:id, :tenant, :kind, {PRIORITY}, :nanousd, :reason, :created, 0, 0)",
            values,
        )
        asked = sa.text("SELECT number FROM grants WHERE id = :id")
        number = self._connection.execute(asked, {"id": grant_id}).scalar_one()
        self.left[number] = nanousd
        self.enter("grant", nanousd, number)

    def draw(self, nanousd: int) -> list[tuple[int, int]]:
        """Take an amount from the grants, the oldest first. Return the parts; they may be less than the amount."""
        parts = []
        for number, left in self.left.items():
            part = min(left, nanousd)
            if part > 0:
                self.left[number] -= part
                nanousd -= part
                parts.append((number, part))
        return parts

    def spend(self, kind: str, nanousd: int) -> int:
        """Spend an amount, and return what no grant has."""
        for number, part in self.draw(nanousd):
            self.enter(kind, part, number)
            self._write(
                "UPDATE grants SET spent_nanousd = spent_nanousd + :part WHERE number = :number",
                {"part": part, "number": number},
            )
            nanousd -= part
        if nanousd:
            self.enter(kind, nanousd, None)
        return nanousd

    def hold(self, edge: str, nanousd: int) -> None:
        for number, part in self.draw(nanousd):
            self.enter("reserve", part, number, edge)
            self._write(
                "INSERT INTO wallet_holds (edge, tenant, grant_number, nanousd) "
                "VALUES (:edge, :tenant, :number, :part)",
                {"edge": edge, "number": number, "part": part},
            )

    def owe(self, nanousd: int) -> None:
        self._write("INSERT INTO wallets (tenant, overdraft_nanousd) VALUES (:tenant, :owed)", {"owed": nanousd})

    def _write(self, statement: str, values: dict[str, Any]) -> None:
        known = {"tenant": self._tenant, "now": self._now_ms}
        used = {name: value for name, value in (known | values).items() if f":{name}" in statement}
        self._connection.execute(sa.text(statement), used)


def _convert(connection: sa.Connection, tenant: str, now_ms: int) -> None:
    def rows(statement: str) -> Sequence[Any]:
        return connection.execute(sa.text(statement), {"tenant": tenant}).all()

    books = _Books(connection, tenant, now_ms)
    credits = rows("SELECT id, nanousd, reason, created_ms FROM credits WHERE tenant = :tenant ORDER BY number")
    for row in credits:
        if row.nanousd > 0:
            kind = "free" if row.reason == "sign-up" else "paid"
            books.grant(row.id, kind, row.nanousd, row.reason, row.created_ms)
    if tenant in UNLIMITED:
        return
    [[charged]] = rows("SELECT COALESCE(SUM(cost_nanousd), 0) FROM spending WHERE tenant = :tenant")
    if charged < 0:
        books.grant(f"refund-of-{tenant}"[:64], "refund", int(-charged), "given back before the upgrade", now_ms)
    owed = books.spend("settle", max(0, int(charged)))
    owed += books.spend("withdraw", -sum(row.nanousd for row in credits if row.nanousd < 0))
    if owed:
        books.owe(owed)
    leases = rows(
        "SELECT edge, granted_nanousd - (SELECT COALESCE(SUM(cost_nanousd), 0) FROM spending WHERE spending.edge = "
        "leases.edge AND spending.tenant = leases.tenant) AS unspent FROM leases "
        f"WHERE tenant = :tenant AND key = '' AND expires_ms > {now_ms} ORDER BY edge"
    )
    for row in leases:
        books.hold(row.edge, int(row.unspent))
