"""The small shop database of the sql-query adapter, and a safe way to run one SELECT on it.

The rows are fixed by a seed, so a query has the same result everywhere.
"""

from __future__ import annotations

import random
import sqlite3
import time
from typing import Any

SCHEMA = """
CREATE TABLE customers (
    customer_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    city TEXT NOT NULL,
    joined INTEGER NOT NULL              -- year
);
CREATE TABLE products (
    product_id INTEGER PRIMARY KEY,
    title TEXT NOT NULL UNIQUE,          -- lower case, singular
    category TEXT NOT NULL,              -- kitchen, office, garden, toys or sports
    price REAL NOT NULL,
    stock INTEGER NOT NULL
);
CREATE TABLE orders (
    order_id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers,
    product_id INTEGER NOT NULL REFERENCES products,
    quantity INTEGER NOT NULL,
    day TEXT NOT NULL,                   -- YYYY-MM-DD, all in 2024
    status TEXT NOT NULL                 -- pending, shipped, delivered or returned
);
"""

CUSTOMERS = (
    ("Alice", "Lisbon", 2019), ("Bruno", "Oslo", 2021), ("Chen", "Berlin", 2022), ("Dora", "Lisbon", 2020),
    ("Emil", "Prague", 2023), ("Farah", "Vienna", 2019), ("Gita", "Berlin", 2024), ("Hugo", "Madrid", 2021),
    ("Ines", "Lisbon", 2022), ("Jack", "Dublin", 2020), ("Kira", "Oslo", 2023), ("Liam", "Dublin", 2022),
    ("Mona", "Berlin", 2018), ("Nils", "Oslo", 2019), ("Olga", "Prague", 2021), ("Pablo", "Madrid", 2024),
    ("Quinn", "Berlin", 2020), ("Rosa", "Rome", 2018), ("Sami", "Vienna", 2022), ("Tara", "Lisbon", 2024),
    ("Umar", "Rome", 2023), ("Vera", "Berlin", 2019), ("Wim", "Vienna", 2020), ("Zoe", "Madrid", 2022),
)  # fmt: skip
PRODUCTS = (
    ("kettle", "kitchen", 29.5, 14), ("toaster", "kitchen", 34.0, 0), ("frying pan", "kitchen", 42.5, 9),
    ("blender", "kitchen", 59.0, 4), ("desk lamp", "office", 38.0, 21), ("notebook", "office", 3.5, 240),
    ("stapler", "office", 8.0, 65), ("office chair", "office", 149.0, 3), ("watering can", "garden", 17.0, 30),
    ("garden hose", "garden", 26.0, 0), ("shovel", "garden", 22.5, 12), ("flower pot", "garden", 6.5, 110),
    ("puzzle", "toys", 14.5, 48), ("kite", "toys", 19.0, 7), ("board game", "toys", 32.0, 16),
    ("teddy bear", "toys", 24.0, 0), ("tennis racket", "sports", 79.0, 6), ("yoga mat", "sports", 27.5, 33),
    ("football", "sports", 21.0, 18), ("water bottle", "sports", 11.5, 95), ("jump rope", "sports", 9.5, 5),
)  # fmt: skip
STATUSES = ("pending", "shipped", "delivered", "returned")

_NEVER_ORDERED = {"Wim", "Umar"}
_NEVER_SOLD = {"stapler", "garden hose"}
_ORDER_COUNT = 160
_SEED = 20240694
_READ_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

Rows = list[tuple[Any, ...]]


class QueryError(Exception):
    """The text is not one SELECT statement that this database can run within the limits."""


def connect() -> sqlite3.Connection:
    """A fresh in-memory database with the shop's rows, which refuses everything but reading."""
    rng = random.Random(_SEED)
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO customers (name, city, joined) VALUES (?, ?, ?)", CUSTOMERS)
    connection.executemany("INSERT INTO products (title, category, price, stock) VALUES (?, ?, ?, ?)", PRODUCTS)
    buyers = [(i, rng.uniform(0.4, 2.0)) for i, row in enumerate(CUSTOMERS, start=1) if row[0] not in _NEVER_ORDERED]
    goods = [(i, rng.uniform(0.4, 2.0)) for i, row in enumerate(PRODUCTS, start=1) if row[0] not in _NEVER_SOLD]
    orders = []
    for _ in range(_ORDER_COUNT):
        customer = rng.choices([i for i, _ in buyers], [weight for _, weight in buyers])[0]
        product = rng.choices([i for i, _ in goods], [weight for _, weight in goods])[0]
        day = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        status = rng.choices(STATUSES, (2, 3, 8, 1))[0]
        orders.append((customer, product, rng.choice((1, 1, 1, 2, 2, 3, 4, 5)), day, status))
    connection.executemany(
        "INSERT INTO orders (customer_id, product_id, quantity, day, status) VALUES (?, ?, ?, ?, ?)", orders
    )
    connection.commit()
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READ_ACTIONS else sqlite3.SQLITE_DENY)
    return connection


def run_select(connection: sqlite3.Connection, sql: str, *, seconds: float = 1.0, max_rows: int = 1000) -> Rows:
    """The rows of one SELECT; ``QueryError`` for anything else, or when it runs past the limits."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
    try:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise QueryError("not a query")
        rows = cursor.fetchmany(max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise QueryError(str(error)) from error
    finally:
        connection.set_progress_handler(None, 0)
    if len(rows) > max_rows:
        raise QueryError(f"more than {max_rows} rows")
    return rows
