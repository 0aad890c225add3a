"""Write the training set of the sql-query adapter: questions about the shop and the SELECT that answers them.

Questions are put together from parts (what is asked, of which rows, under which condition), each of
them worded in many ways; the SQL is put together from the same parts, always in the same style. The
output is the same for the same ``--seed`` and ``--count``.

In wordings, ``(a|b|)`` picks one alternative; groups nest.

    python generate.py --out train.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import shop
from grammar import expand

DEFAULT_COUNT = 2200
DEFAULT_SEED = 11


def _split(text: str) -> list[str]:
    return text.split("|")


# Names, cities and products of the shop, less a few that training never mentions, and some the shop does not
# have: the adapter has to copy what it is asked about, not to recall it.
_UNSEEN = {"Gita", "Liam", "Rosa", "Zoe", "Prague", "blender", "board game", "yoga mat", "kite"}
_NAMES = [row[0] for row in shop.CUSTOMERS if row[0] not in _UNSEEN] + _split(
    "Anton|Bella|Carlos|Diana|Erik|Fiona|Georg|Helen|Ivan|Julia|Karl|Lena|Marco|Nadia|Otto|Paula|Ravi|Sonia|Tomas|Uma|"
    "Viktor|Wendy|Yusuf|Amir|Clara|Denis|Elif|Greta|Henry|Isla|Jonas|Layla|Mira|Noor|Oscar|Petra|Ruth|Stefan|Tina|Yara"
)
_CITIES = sorted({row[1] for row in shop.CUSTOMERS} - _UNSEEN) + _split(
    "Paris|London|Athens|Warsaw|Porto|Zurich|Milan|Bergen|Hamburg|Seville|Cork|Graz|Turin|Lyon|Ghent|Malmo|Krakow"
)
_TITLES = [row[0] for row in shop.PRODUCTS if row[0] not in _UNSEEN] + _split(
    "rice cooker|mug|bread knife|coffee grinder|pen holder|bookshelf|whiteboard|rake|wheelbarrow|bird feeder|toy car|"
    "doll house|yo-yo|skateboard|basketball|dumbbell|tea pot|cutting board|monitor stand|calendar|garden chair|hammock"
)
_CATEGORIES = ["kitchen", "office", "garden", "toys", "sports"]
_MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
_COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten"}


@dataclass(frozen=True)
class Condition:
    """A condition in words and in SQL, with the table it is on; ``kind`` says which wordings fit."""

    kind: str
    value: str
    table: str
    sql: str


def plural(title: str) -> str:
    """The plural of a product title."""
    if title.endswith(("shelf", "knife")):
        return re.sub("(f|fe)$", "ves", title)
    return title + ("es" if title.endswith(("s", "ch", "sh", "x")) else "s")


def select(columns: str, tables: Sequence[str], where: Sequence[str] = (), tail: str = "") -> str:
    """A SELECT in the one style that all answers have; ``tables`` are joined on their keys."""
    keys = {"customers": "customer_id", "products": "product_id"}
    source = tables[0]
    for table in sorted(set(tables[1:]) - {tables[0]}):
        source += f" JOIN {table} USING ({keys[table]})"
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    return f"SELECT {columns} FROM {source}{condition}{' ' + tail if tail else ''}"


def _limit(rng: random.Random) -> int:
    return rng.choice(sorted(_COUNT_WORDS))


def _spell(number: int, rng: random.Random) -> str:
    return _COUNT_WORDS[number] if number in _COUNT_WORDS and rng.random() < 0.5 else str(number)


# Conditions ----------------------------------------------------------------------------------------------------------


def _compared(column: str, low: int, high: int, step: int, rng: random.Random) -> tuple[str, str]:
    """A comparison with a number: the words (without a verb) and the SQL."""
    number = rng.randrange(low, high, step)
    more = number + step * rng.randint(1, 8)
    return rng.choice(
        [
            (f"(under|below|less than) {number}", f"{column} < {number}"),
            (f"(under|below|less than) {number}", f"{column} < {number}"),
            (f"(over|above|more than) {number}", f"{column} > {number}"),
            (f"(over|above|more than) {number}", f"{column} > {number}"),
            (f"(at least|no less than) {number}", f"{column} >= {number}"),
            (f"(at most|no more than|up to) {number}", f"{column} <= {number}"),
            (f"(between {number} and {more}|from {number} to {more})", f"{column} BETWEEN {number} AND {more}"),
        ]
    )


def customer_condition(rng: random.Random) -> tuple[str, list[str]]:
    """Which customers: words that follow "customers", and SQL."""
    city, year = rng.choice(_CITIES), rng.randint(2018, 2024)
    place = (
        f"((who|that|) live in|living in|from|in|who are from|based in|who come from|with an address in) {city}",
        f"city = '{city}'",
    )
    joined = rng.choice(
        [
            (f"in {year}", f"joined = {year}"),
            (f"in {year}", f"joined = {year}"),
            (f"before {year}", f"joined < {year}"),
            (f"after {year}", f"joined > {year}"),
            (f"(since|in or after) {year}", f"joined >= {year}"),
        ]
    )
    since = (f"(who|that) (joined|signed up|registered|became customers|started) {joined[0]}", joined[1])
    kind = rng.random()
    if kind < 0.4:
        return place[0], [place[1]]
    if kind < 0.8:
        return since[0], [since[1]]
    return rng.choice([f"{place[0]} {since[0]}", f"from {city} {since[0]}"]), [place[1], since[1]]


def product_condition(rng: random.Random) -> tuple[str, str, list[str]]:
    """Which products: a noun phrase for them, the words after it, and SQL."""
    category = rng.choice(_CATEGORIES)
    singular = category.rstrip("s") if category == "toys" else category
    section = f"(in|from) (the|our) {category} (category|section)"
    noun = f"({singular} (products|items|articles)|(products|items|things) {section})"
    price_words, price_sql = _compared("price", 5, 100, 1, rng)
    price = f"(((that|which) cost|priced|with a price|costing) {price_words} (euros|)|{price_words} euros)"
    stock_words, stock_sql = _compared("stock", 2, 80, 1, rng)
    stock = rng.choice(
        [
            (f"(with|of which we have|we have) {stock_words} (in stock|pieces in stock|left)", stock_sql),
            ("((that|which) are|) (out of stock|sold out|not in stock|no longer in stock)", "stock = 0"),
            ("((that|which) are|) (in stock|available|still available)", "stock > 0"),
        ]
    )
    every = "(products|items|articles)"
    return rng.choice(
        [
            (noun, "", [f"category = '{category}'"]),
            (every, price, [price_sql]),
            (every, stock[0], [stock[1]]),
            (noun, price, [f"category = '{category}'", price_sql]),
            (noun, stock[0], [f"category = '{category}'", stock[1]]),
        ]
    )


def order_condition(rng: random.Random, *kinds: str) -> Condition:
    """A condition on the orders counted or summed, of one of ``kinds``."""
    kind = rng.choice(kinds)
    if kind == "customer":
        value = rng.choice(_NAMES)
        return Condition(kind, value, "customers", f"name = '{value}'")
    if kind == "city":
        value = rng.choice(_CITIES)
        return Condition(kind, value, "customers", f"city = '{value}'")
    if kind == "category":
        value = rng.choice(_CATEGORIES)
        return Condition(kind, value, "products", f"category = '{value}'")
    if kind == "product":
        value = rng.choice(_TITLES)
        return Condition(kind, value, "products", f"title = '{value}'")
    if kind == "month":
        value = rng.choice(_MONTHS)
        return Condition(kind, value, "orders", f"day LIKE '2024-{_MONTHS.index(value) + 1:02d}-%'")
    value = rng.choice(shop.STATUSES)
    return Condition("status", value, "orders", f"status = '{value}'")


def goods(condition: Condition) -> str:
    """Products of a category, or pieces of one product, as a plural noun phrase."""
    if condition.kind == "product":
        return plural(condition.value)
    return "(toys|toy products)" if condition.value == "toys" else f"{condition.value} (products|items|articles)"


def month_after(rng: random.Random, share: float = 0.2) -> tuple[str, list[str]]:
    """Now and then, a month that narrows the question further."""
    if rng.random() > share:
        return "", []
    month = order_condition(rng, "month")
    return f"(in|during) {month.value}", [month.sql]


# Questions -----------------------------------------------------------------------------------------------------------

Question = tuple[str, str]
SHOW = "(show|list|give|tell|find) (me|) (all|) (the|)"


def customers_listed(rng: random.Random) -> Question:
    """Customers, or how many, under a condition."""
    words, where = customer_condition(rng)
    if rng.random() < 0.5:
        asked = (
            f"(how many|what number of) (customers|clients|people|buyers) (do we have|are there|have we got|) {words}",
            f"(count|number of|what is the number of|give me the number of) (the|) (customers|clients) {words}",
            f"how many (customers|clients|of our customers) {words} (are there|do we have|)",
        )
        return rng.choice(asked), select("COUNT(*)", ["customers"], where)
    asked = (
        f"(which|what) (customers|clients|people) (are there|do we have|) {words}",
        f"{SHOW} (names of|) (the|) (customers|clients|people) {words}",
        f"(names of|who are) (the|our|all|) (customers|clients) {words}",
        f"(i need|i want|get me) (the names of|) (all|) (customers|clients) {words}",
    )
    return rng.choice(asked), select("name", ["customers"], where)


def customer_fact(rng: random.Random) -> Question:
    """The city or the year of one customer, and overviews of the customers and products."""
    name = rng.choice(_NAMES)
    return rng.choice(
        [
            (
                f"((where|in (which|what) city) does {name} live|(what is|what's|) {name}'s city"
                f"|where is {name} (from|based)"
                f"|(which|what) city (is {name} from|does {name} (live in|come from))|where does {name} come from)",
                select("city", ["customers"], [f"name = '{name}'"]),
            ),
            (
                f"((when|in (which|what) year) did {name} (join|sign up|register|become a customer)"
                f"|since when (is|has) {name} (a customer|been a customer)|(what|which) year did {name} join)",
                select("joined", ["customers"], [f"name = '{name}'"]),
            ),
            (
                "(which|what) (cities|towns) (are our|do our|are the) (customers|clients) (live in|from|come from)"
                f"|{SHOW} (different|distinct|) (cities of our customers|cities)",
                select("DISTINCT city", ["customers"]),
            ),
            (
                "(how many|number of) (different|distinct|) cities (do (our|the) customers (live in|come from)|)"
                "|(in|from) how many (different|) cities (do we have|are) (our|) customers",
                select("COUNT(DISTINCT city)", ["customers"]),
            ),
            (
                "how many (customers|clients) (do we have|are there|are registered) (in total|overall|at all|)"
                "|(what is the|) (total|) number of (our|all|) customers",
                select("COUNT(*)", ["customers"]),
            ),
            (
                "how many (products|articles|different products) (do we (sell|offer|have)|are there) (in total|)"
                "|(what is the|) (total|) number of (our|all|) products",
                select("COUNT(*)", ["products"]),
            ),
            (
                "(how many|number of|count the) (customers|clients) (per|by|in each|for each|for every) city"
                "|(for each|per) city (show|give|) the number of customers",
                select("city, COUNT(*)", ["customers"], tail="GROUP BY city"),
            ),
            (
                "(how many|number of|count the) (customers|clients) (joined|signed up|) (per|by|in each|each) year",
                select("joined, COUNT(*)", ["customers"], tail="GROUP BY joined"),
            ),
            (
                "(which|what) city (has|is home to) (the most|the largest number of|the highest number of) customers"
                "|where do most (of our|) customers live|in which city do most (of our|) customers live",
                select("city", ["customers"], tail="GROUP BY city ORDER BY COUNT(*) DESC LIMIT 1"),
            ),
        ]
    )


def products_listed(rng: random.Random) -> Question:
    """Products, or how many, under a condition."""
    noun, words, where = product_condition(rng)
    kind = rng.random()
    if kind < 0.4:
        asked = (
            f"how many {noun} (do we (have|sell|offer)|are there|have we got|) {words}",
            f"(count|number of|what is the number of) (the|all|) {noun} {words}",
        )
        return rng.choice(asked), select("COUNT(*)", ["products"], where)
    asked = (
        f"(which|what) {noun} (do we (have|sell|offer)|are there|) {words}",
        f"(which|what) {noun} (are|) {words}",
        f"{SHOW} (names of|titles of|) {noun} {words}",
        f"(i need|i want|get me|i'm looking for|do we have any) {noun} {words}",
    )
    return rng.choice(asked), select("title", ["products"], where)


def product_fact(rng: random.Random) -> Question:
    """The price, stock or category of one product."""
    title = rng.choice(_TITLES)
    many = plural(title)
    column, asked = rng.choice(
        [
            (
                "price",
                f"(how much (is (a|the|one) {title}|does (a|the|one) {title} cost)"
                f"|(what is|what's|tell me) the (price|cost) of (a|the) {title}"
                f"|(price|cost) of (the|a|) {title}|(what|how much) (do (the|) {many} cost|are (the|) {many}))",
            ),
            (
                "stock",
                f"(how many {many} (are|do we have|are there|have we got) (in stock|left|available|on hand|)"
                f"|(what is|what's) the stock (level|) of (the|) ({title}|{many})|stock of {many})",
            ),
            (
                "category",
                f"((which|what) category (is (the|a) {title} in|does (the|a) {title} belong to)"
                f"|(what is|what's) the category of (the|a) {title}"
                f"|category of (the|) {title}|in (which|what) category (is|are) (the {title}|{many}))",
            ),
        ]
    )
    return asked, select(column, ["products"], [f"title = '{title}'"])


def product_figures(rng: random.Random) -> Question:
    """Averages, extremes and sums over products, whole, of one category or per category."""
    category = rng.choice(_CATEGORIES)
    noun = {"toys": "(toys|toy products)"}.get(category, f"{category} (products|items|articles)")
    figure, asked = rng.choice(
        [
            ("AVG(price)", "(what is|what's|give me|) the (average|mean) (price|cost)"),
            ("MAX(price)", "(what is|what's|give me|) the (highest|maximum|top) price"),
            ("MIN(price)", "(what is|what's|give me|) the (lowest|minimum) price"),
            ("SUM(stock)", "(what is|what's|give me|) the (total|overall) (stock|number of pieces in stock)"),
            ("SUM(price * stock)", "(what is|what's|give me|) the (total|) (stock value|inventory value)"),
            ("COUNT(*)", "(what is|what's|give me|) the number (of products|of items)"),
        ]
    )
    kind = 1.0 if figure == "COUNT(*)" else rng.random()
    if kind < 0.4:
        where = [f"category = '{category}'"]
        if figure == "AVG(price)":
            asked = rng.choice([asked, "(how much|what) (do|does) (the|) X cost on average"])
        if figure == "SUM(stock)":
            asked = rng.choice([asked, "how many (pieces|units) of X (are in stock|do we have in stock)"])
        if figure == "SUM(price * stock)":
            asked = rng.choice([asked, "how much (is|are) the X in stock worth"])
        if "X" in asked:
            return asked.replace("X", noun), select(figure, ["products"], where)
        asked += f" ((of|for|among) (the|all|) {noun}|in the {category} category)"
        return asked, select(figure, ["products"], where)
    if kind < 0.65:
        if figure == "SUM(price * stock)":
            asked = rng.choice([asked, "(what|how much) is (all|) our (whole|entire|) stock worth"])
        if figure == "AVG(price)":
            asked = rng.choice([asked, "(what|how much) does (a|one) product cost on average"])
        return f"{asked} (of|across|over|for|) (all products|all our products|everything we sell|)", select(
            figure, ["products"]
        )
    each = "(per|by|in each|for each|for every|of each) category"
    return f"{asked} {each}", select(f"category, {figure}", ["products"], tail="GROUP BY category")


def product_ranking(rng: random.Random) -> Question:
    """The cheapest, dearest or most stocked products."""
    number = rng.choice([1, 1, _limit(rng)])
    column, order, adjective = rng.choice(
        [
            ("price", "", "(cheapest|least expensive|lowest priced)"),
            ("price", " DESC", "(most expensive|priciest|dearest|highest priced)"),
            ("stock", " DESC", "(best stocked|most stocked)"),
        ]
    )
    where: list[str] = []
    noun, nouns = "(product|item|article)", "(products|items|articles)"
    if rng.random() < 0.5:
        category = rng.choice(_CATEGORIES)
        where = [f"category = '{category}'"]
        noun = {"toys": "(toy|toy product)"}.get(category, f"{category} (product|item|article)")
        nouns = {"toys": "(toys|toy products)"}.get(category, f"{category} (products|items|articles)")
        if rng.random() < 0.3:
            noun, nouns = f"product in the {category} category", f"products in the {category} category"
    sql = select("title", ["products"], where, f"ORDER BY {column}{order} LIMIT {number}")
    if number == 1:
        asked = (
            f"(what is|what's|which is|show me|name|find) (the|our) {adjective} {noun} (we have|in the shop|)",
            f"(which|what) {noun} (is the {adjective}|is {adjective}|costs the {'most' if order else 'least'})"
            if column == "price"
            else f"which {noun} (do we have the most of|is the {adjective}|has the (highest|largest) stock)",
            f"{adjective} {noun}",
        )
        return rng.choice(asked), sql
    many = _spell(number, rng)
    asked = (
        f"(what are|which are|show me|list|name|give me|find) (the|our) {many} {adjective} {nouns}",
        f"(which|what) {many} {nouns} (are the {adjective}|are {adjective})",
        f"(the|) (top|) {many} {adjective} {nouns}",
    )
    return rng.choice(asked), sql


@dataclass(frozen=True)
class Measure:
    """Something orders are measured by."""

    sql: str
    tables: tuple[str, ...]
    whole: str
    by_customer: str
    by_city: str
    of_goods: str
    noun: str


MEASURES = (
    Measure(
        "COUNT(*)",
        ("orders",),
        "(how many orders (are there|do we have|were placed|did we get|came in|were made)"
        "|(what is the|) (number of|total number of) orders|count (the|all|) orders)",
        "(how many orders (did NAME (place|make)|has NAME (placed|made)|does NAME have|(are|came) from NAME)"
        "|how many orders were placed by NAME"
        "|(number of|count the) orders (by|from|of) NAME|how often (did|has) NAME (order|ordered))",
        "(how many orders ((came from|are from|were placed (in|from)) CITY|did (customers|people) in CITY (place|make))"
        "|(number of|count the) orders (from|of) (customers|people|clients) (in|from) CITY)",
        "(how many orders (are there|do we have|did we get|were placed|are) (for|of) GOODS"
        "|(number of|count the) orders (for|of) GOODS|how often were GOODS ordered)",
        "(orders|number of orders)",
    ),
    Measure(
        "SUM(quantity)",
        ("orders",),
        "(how many (units|pieces|items) (were sold|did we sell|have we sold|were ordered)"
        "|(what is the|) (total|) (quantity|number of (units|items|pieces)) (sold|ordered))",
        "(how many (units|pieces|items) (did NAME (buy|order|purchase)|has NAME (bought|ordered)|were sold to NAME)"
        "|(total|) (quantity|number of items) (bought|ordered) by NAME)",
        "(how many (units|pieces|items) (did (customers|people) (in|from) CITY (buy|order)|were sold (in|to) CITY)"
        "|how many (units|pieces|items) went to CITY"
        "|(total|) quantity ordered (in|from) CITY)",
        "(how many GOODS (were sold|did we sell|have we sold|were ordered|were bought)"
        "|how many (units|pieces) of (the|) GOODS (were sold|did we sell)"
        "|(total|) (quantity|number) of GOODS (sold|ordered))",
        "(units|units sold|items sold|quantity sold|pieces sold)",
    ),
    Measure(
        "SUM(quantity * price)",
        ("orders", "products"),
        "((what is|what's|what was|) (the|our) (total|overall|) (revenue|turnover|sales revenue|income)"
        "|how much (money|revenue|) did we (make|earn|take|take in))",
        "(how much (money|) (did NAME (spend|pay)|has NAME (spent|paid)) (in total|altogether|)"
        "|(what is|) (the|) (total|) (revenue from|spending of|sum of the orders of|amount spent by) NAME"
        "|how much did we (earn|make) (with|from) NAME)",
        "(how much (money|) (did (customers|people|clients) (in|from) CITY (spend|pay)|did we (make|earn) in CITY)"
        "|(what is|what's|) the (total|) (revenue|turnover) (from|in|of|with) (customers in|) CITY)",
        "(how much (money|) (did we (make|earn|take)|have we (made|earned)) (with|from|on|by selling) GOODS"
        "|(what is|what's|what was|) (the|our) (total|) (revenue|turnover|sales revenue) (from|of|with|for) GOODS"
        "|how much (revenue|) did GOODS bring in)",
        "(revenue|total revenue|turnover)",
    ),
)
_GROUP_COLUMNS = {"customer": "name", "city": "city", "category": "category", "product": "title"}
_GROUP_TABLES = {"customer": "customers", "city": "customers", "category": "products", "product": "products"}


def orders_measured(rng: random.Random) -> Question:
    """Number of orders, units or revenue, of all orders or those under a condition."""
    measure = rng.choice(MEASURES)
    after, more = month_after(rng)
    kind = rng.choice(["whole", "customer", "customer", "city", "goods", "goods", "month", "status"])
    if kind in ("whole", "month", "status"):
        where = list(more)
        asked = f"{measure.whole} (so far|in total|overall|)"
        if kind == "month" or after:
            month = order_condition(rng, "month")
            asked, where = f"{measure.whole} (in|during|in the month of) {month.value}", [month.sql]
        elif kind == "status":
            status = order_condition(rng, "status")
            where = [status.sql]
            asked = f"{measure.whole} (for|from|with|in|of) {status.value} orders"
            if measure.sql == "COUNT(*)":
                asked = (
                    f"(how many {status.value} orders (are there|do we have|)"
                    f"|how many orders (are|were|have been|are still|got) {status.value}"
                    f"|(number of|count the|count all) {status.value} orders"
                    f"|how many orders (have|are in) (the|) status {status.value})"
                )
                if rng.random() < 0.2:
                    month = order_condition(rng, "month")
                    asked, where = f"{asked} (in|from) {month.value}", [month.sql, status.sql]
        return asked, select(measure.sql, measure.tables, where)
    if kind == "goods":
        condition = order_condition(rng, "category", "product")
        asked = measure.of_goods.replace("GOODS", goods(condition))
    else:
        condition = order_condition(rng, kind)
        wording = measure.by_customer if kind == "customer" else measure.by_city
        asked = wording.replace("NAME", condition.value).replace("CITY", condition.value)
        if kind == "customer" and measure.sql != "COUNT(*)" and rng.random() < 0.15:
            what = order_condition(rng, "category")
            asked = f"{asked} on {goods(what)}" if "price" in measure.sql else f"{asked} of {goods(what)}"
            return asked, select(measure.sql, [*measure.tables, "customers", "products"], [condition.sql, what.sql])
    sql = select(measure.sql, [*measure.tables, condition.table], [condition.sql, *more])
    return f"{asked} {after}", sql


def orders_grouped(rng: random.Random) -> Question:
    """A measure per customer, city, category, product, status or month."""
    measure = rng.choice(MEASURES)
    group = rng.choice([*_GROUP_COLUMNS, "status"])
    each = f"(per|by|for each|for every|of each) {group}"
    asked = rng.choice(
        [
            f"(what is|what's|show|show me|give me|list|) (the|) {measure.noun} {each}",
            f"{measure.whole} {each}",
            f"(for each|per) {group} (show|give|list) (me|) (the|) {measure.noun}",
        ]
    )
    if group == "status":
        return asked, select(f"status, {measure.sql}", measure.tables, tail="GROUP BY status")
    column, table = _GROUP_COLUMNS[group], _GROUP_TABLES[group]
    return asked, select(f"{column}, {measure.sql}", [*measure.tables, table], tail=f"GROUP BY {column}")


def orders_ranked(rng: random.Random) -> Question:
    """The customers, products, categories or cities with the most or least of a measure."""
    measure = rng.choice(MEASURES)
    group = rng.choice(["customer", "customer", "product", "product", "category", "city"])
    column, table = _GROUP_COLUMNS[group], _GROUP_TABLES[group]
    number = rng.choice([1, rng.choice([2, 3]) if group in ("category", "city") else _limit(rng)])
    least = rng.random() < 0.2
    after, where = month_after(rng, 0.1)
    many = "cities" if group == "city" else "categories" if group == "category" else f"{group}s"
    head = f"(which|what) {group}" if number == 1 else f"(which|what) {_spell(number, rng)} {many}"
    if group == "customer" and number == 1:
        head = rng.choice([head, "who"])
    superlative = "(least|fewest|lowest)" if least else "(most|highest|largest)"
    best = "(worst|bottom)" if least else "(best|top)"
    fewest, more = ("fewest", "least") if least else ("most", "most")
    good = "worst" if least else "best"
    if measure.sql == "COUNT(*)":
        verbs = {
            "customer": f"((has|have) (placed|made|) the {fewest} orders|(ordered|orders) {more} often)",
            "product": f"((is|was|were|are) (ordered|bought) {more} often|(has|have) the {fewest} orders)",
            "category": f"((has|have|gets) the {fewest} orders|(is|was) ordered {more} often)",
            "city": f"(has|have|gets|places|placed) the {fewest} orders",
        }
    elif measure.sql == "SUM(quantity)":
        verbs = {
            "customer": f"(bought|ordered|has bought|purchased) the {fewest} (units|items|pieces)",
            "product": f"(sold|sells|sell) (the {fewest}|{good}|the {fewest} (units|pieces))",
            "category": f"(sold|sells|sell) (the {fewest}|{good}|the {fewest} (units|items))",
            "city": f"(bought|ordered) the {fewest} (units|items|pieces)",
        }
    else:
        verbs = {
            "customer": f"(spent|has spent|spends|paid) the {more} (money|)",
            "product": f"(made|earned|brought in|brings in) the {more} (money|revenue)",
            "category": f"(made|earned|brought in|has|generates) the {more} (money|revenue)",
            "city": f"(spent|spends|brought in) the {more} (money|)",
        }
    asked = [
        f"{head} {verbs[group]} {after}",
        f"{head} {verbs[group]} {after}",
        f"{head} (has|have|with) the {superlative} {measure.noun} {after}",
    ]
    count = "" if number == 1 else _spell(number, rng)
    noun = group if number == 1 else many
    asked.append(
        f"(show me|what is|list|give me|name|) the {best} {count} {noun} (by|in terms of) {measure.noun} {after}"
    )
    if group == "product" and measure.sql == "SUM(quantity)" and number == 1:
        asked.append(f"(what is|what's|which is) (the|our) {good} (selling product|seller) {after}")
    if group == "product" and measure.sql == "SUM(quantity)" and number > 1:
        asked.append(f"(what are|show me|list|our|) (the|) {count} {good} (selling products|sellers) {after}")
    direction = "" if least else " DESC"
    tail = f"GROUP BY {column} ORDER BY {measure.sql}{direction} LIMIT {number}"
    return rng.choice(asked), select(column, [*measure.tables, table], where, tail)


def bought_lists(rng: random.Random) -> Question:
    """Which products somebody bought, and who bought something."""
    after, more = month_after(rng)
    if rng.random() < 0.45:
        condition = order_condition(rng, "customer", "customer", "city")
        who = condition.value if condition.kind == "customer" else f"(customers|people) (in|from) {condition.value}"
        has = "has" if condition.kind == "customer" else "have"
        asked = (
            f"(what|which products|which items|what products) did {who} (buy|order|purchase) {after}",
            f"(what|which products|which items) {has} {who} (bought|ordered|purchased) {after}",
            f"{SHOW} (products|items|things|articles) (bought by|ordered by|that were bought by|sold to) {who} {after}",
            f"{SHOW} (products|items|things) (that|which|) {who} (bought|ordered) {after}",
        )
        return rng.choice(asked), select("DISTINCT title", ["orders", "customers", "products"], [condition.sql, *more])
    condition = order_condition(rng, "product", "product", "category", "month", "status")
    people = "(customers|clients|people|buyers)"
    if condition.kind == "status":
        asked = (
            f"(which|what) {people} (have|had|got) {condition.value} orders",
            f"who (has|had|got) (a|an|any|) {condition.value} (order|orders)",
            f"{SHOW} {people} (with|who have|that have) (a|) {condition.value} (order|orders)",
            f"whose orders (are|were|are still|have been) {condition.value}",
        )
        return rng.choice(asked), select("DISTINCT name", ["orders", "customers"], [condition.sql])
    if condition.kind == "month":
        asked = (
            f"(which|what) {people} (ordered|bought|purchased|placed an order|ordered something) in {condition.value}",
            f"who (ordered|bought|placed an order|bought something) (in|during) {condition.value}",
            f"{SHOW} {people} (who|that) (ordered|bought something|placed an order) (in|during) {condition.value}",
        )
        return rng.choice(asked), select("DISTINCT name", ["orders", "customers"], [condition.sql])
    what = goods(condition)
    if condition.kind == "product":
        what = f"({what}|a {condition.value}|the {condition.value})"
    asked = (
        f"(which|what) {people} (bought|ordered|have bought|have ordered|purchased) {what} {after}",
        f"who (bought|ordered|has bought|has ordered|purchased) {what} {after}",
        f"{SHOW} {people} (who|that) (bought|ordered|have bought|purchased) {what} {after}",
    )
    return rng.choice(asked), select("DISTINCT name", ["orders", "customers", "products"], [condition.sql, *more])


def never(rng: random.Random) -> Question:
    """Customers without orders, products without sales."""
    if rng.random() < 0.5:
        people = "(customers|clients|people)"
        lacking = (
            "((have|) never (ordered|bought|placed an order|ordered anything|bought anything)|have no orders"
            "|did not order (anything|)|have not ordered (anything|yet))"
        )
        where = "customer_id NOT IN (SELECT customer_id FROM orders)"
        if rng.random() < 0.4:
            return f"how many {people} {lacking}", select("COUNT(*)", ["customers"], [where])
        asked = (
            f"(which|what) {people} {lacking}",
            f"{SHOW} {people} (who|that) {lacking}",
            f"{SHOW} {people} without (any|) (orders|an order|a purchase)",
            "who (has|) never (ordered|bought) (anything|)",
        )
        return rng.choice(asked), select("name", ["customers"], [where])
    nouns = "(products|items|articles)"
    lacking = "((have never been|were never|are never) (sold|ordered|bought)|have no orders|nobody (ordered|bought))"
    where = "product_id NOT IN (SELECT product_id FROM orders)"
    if rng.random() < 0.4:
        return f"how many {nouns} {lacking}", select("COUNT(*)", ["products"], [where])
    asked = (
        f"(which|what) {nouns} {lacking}",
        f"{SHOW} {nouns} (that|which) {lacking}",
        f"{SHOW} {nouns} without (any|) (orders|sales)",
    )
    return rng.choice(asked), select("title", ["products"], [where])


def having(rng: random.Random) -> Question:
    """Customers with more than so many orders, products with more than so many units sold."""
    number = rng.randint(2, 12)
    said = _spell(number, rng)
    operator, words = rng.choice(
        [(">", f"more than {said}"), (">=", f"at least {said}"), ("<", f"(fewer|less) than {said}")]
    )
    if rng.random() < 0.6:
        asked = (
            f"(which|what) (customers|clients|people) (have|placed|made|have placed|have made) {words} orders",
            f"{SHOW} (customers|clients) (with|who placed|who made|who have|that have) {words} orders",
            f"who (placed|made|has|has placed) {words} orders",
            f"(which|what) (customers|clients) (ordered|bought something) {words} times",
        )
        tail = f"GROUP BY name HAVING COUNT(*) {operator} {number}"
        return rng.choice(asked), select("name", ["orders", "customers"], tail=tail)
    number *= rng.choice([1, 2, 5])
    words = re.sub(r"\S+$", str(number), words)
    asked = (
        f"(which|what) (products|items) (sold|have sold|were sold) {words} (units|pieces|times)",
        f"{SHOW} (products|items) (with|that sold|of which we sold) {words} (units|pieces) (sold|)",
        f"of (which|what) (products|items) did we sell {words} (units|pieces|)",
    )
    tail = f"GROUP BY title HAVING SUM(quantity) {operator} {number}"
    return rng.choice(asked), select("title", ["orders", "products"], tail=tail)


def order_dates(rng: random.Random) -> Question:
    """First and last orders."""
    last = rng.random() < 0.6
    figure = "MAX(day)" if last else "MIN(day)"
    which = "(last|latest|most recent|newest)" if last else "(first|earliest|oldest)"
    if rng.random() < 0.3:
        return (
            f"(when was the {which} order (placed|made|)|(what is|) the (date|day) of the {which} order"
            f"|when did we get (the|our) {which} order)",
            select(figure, ["orders"]),
        )
    condition = order_condition(rng, "customer", "customer", "product")
    if condition.kind == "customer":
        asked = (
            f"(when did {condition.value} (order|buy something|place an order) for the {which} time"
            f"|when was {condition.value}'s {which} order|(date|day) of {condition.value}'s {which} order"
            f"|when did {condition.value} (place|make) (the|a) {which} order)"
        )
        return asked, select(figure, ["orders", "customers"], [condition.sql])
    return (
        f"(when was (a|the) {condition.value} (sold|ordered|bought) for the {which} time"
        f"|when did we sell the {which} {condition.value}"
        f"|when was the {which} order (of|for) (a|the) {condition.value})",
        select(figure, ["orders", "products"], [condition.sql]),
    )


KINDS: dict[str, tuple[Callable[[random.Random], Question], int]] = {
    "customers_listed": (customers_listed, 8),
    "customer_fact": (customer_fact, 6),
    "products_listed": (products_listed, 10),
    "product_fact": (product_fact, 6),
    "product_figures": (product_figures, 8),
    "product_ranking": (product_ranking, 7),
    "orders_measured": (orders_measured, 18),
    "orders_grouped": (orders_grouped, 8),
    "orders_ranked": (orders_ranked, 13),
    "bought_lists": (bought_lists, 10),
    "never": (never, 4),
    "having": (having, 5),
    "order_dates": (order_dates, 4),
}
"""Each kind of question and how often it is drawn, relative to the others."""


def ask(template: str, rng: random.Random) -> str:
    """Word a question, now and then with a polite opening, in one of the usual letter cases."""
    text = expand(f"({template})", rng)
    opening = expand(
        "(please|can you tell me|could you tell me|i'd like to know|tell me|hi|hello|quick question|for my report|"
        "i want to know|do you know|let me know|so|)",
        rng,
    )
    if opening and rng.random() < 0.25:
        text = f"{opening} {text}"
    if rng.random() < 0.8:
        text = text[0].upper() + text[1:]
        text = text.replace(" i ", " I ").replace(" i'", " I'")
        text += rng.choice(
            ["?", "?", "?", "", "."] if re.match("(how|what|wh|in|from|of)", text.lower()) else ["", "."]
        )
    return text


def examples(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` distinct (question, SELECT) pairs in random order."""
    rng = random.Random(seed)
    names = [name for name, (_, weight) in KINDS.items() for _ in range(weight)]
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        template, sql = KINDS[rng.choice(names)][0](rng)
        pairs.setdefault(ask(template, rng), sql)
    return list(pairs.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``{"input", "expected"}`` lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    with args.out.open("w", encoding="utf-8") as file:
        for question, sql in examples(args.count, args.seed):
            file.write(json.dumps({"input": question, "expected": sql}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
