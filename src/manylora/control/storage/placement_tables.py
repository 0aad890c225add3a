"""The tables of dedicated deployments beside their rows: their loads, and the keys that pay for them."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table

from manylora.control.storage.tables import metadata

deployment_loads = Table(  # the last report of each edge; rows without a fresh one are deleted
    "deployment_loads",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("edge", String(64), primary_key=True),
    Column("load", Integer, nullable=False),  # requests under way or waiting
    Column("noted_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),  # moment of the last request
)

deployment_payers = Table(  # a row for each moment from which on another key pays; the first has the moment 0
    "deployment_payers",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("deployment", BigInteger, ForeignKey("deployments.number"), nullable=False, index=True),
    Column("from_ms", BigInteger, nullable=False),
    Column("key", String(8)),  # NULL: the budgets of the tenant alone count the seconds
)
