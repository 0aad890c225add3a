"""The table of the loads of dedicated deployments, which all control planes of one database share."""

from sqlalchemy import BigInteger, Column, Integer, String, Table

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
