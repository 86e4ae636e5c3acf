"""SQL Server queries → PostgreSQL, from a seeded generator that writes both."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.rows import Row

NUM_ROWS = 4000
TABLES = {
    "orders": ("id", "customer_id", "total", "status", "created_at"),
    "customers": ("id", "name", "email", "city", "created_at"),
    "products": ("id", "title", "price", "stock", "updated_at"),
    "employees": ("id", "name", "salary", "team", "hired_at"),
    "events": ("id", "kind", "payload", "user_id", "happened_at"),
    "invoices": ("id", "number", "amount", "paid", "due_at"),
    "flights": ("id", "origin", "target", "seats", "leaves_at"),
    "books": ("id", "title", "author", "pages", "printed_at"),
}
UNITS = ("day", "month", "year", "hour", "week")
Both = tuple[str, str]  # the same in each dialect
Draw = Callable[[random.Random, tuple[str, ...]], Both]


def sql(packages: Path) -> Iterator[Row]:
    """A query of SQL Server → the same for PostgreSQL."""
    rng = random.Random("sql")
    for _ in range(NUM_ROWS):
        table = rng.choice(list(TABLES))
        columns = TABLES[table]
        shown = [rng.choice(list(_SHOWN)) for _ in range(rng.choice((1, 1, 2)))]
        tested = rng.choice(list(_TESTED))
        limit = rng.randrange(1, 100) if rng.random() < 0.5 else None
        ordered = rng.choice((None, "", " DESC"))
        parts = [_SHOWN[name](rng, columns) for name in shown]
        where = _TESTED[tested](rng, columns)
        order = f" ORDER BY {rng.choice(columns)}{ordered}" if ordered is not None else ""
        theirs, ours = (", ".join(part[side] for part in parts) for side in (0, 1))
        top, last = (f"TOP {limit} ", f" LIMIT {limit}") if limit else ("", "")
        text = f"SELECT {top}{theirs} FROM [{table}]{where[0]}{order}"
        answer = f'SELECT {ours} FROM "{table}"{where[1]}{order}{last}'
        source = f"{' '.join(shown)} | {tested} | {bool(limit)} | {ordered}"
        yield Row(f"SQL Server: {text}\nPostgreSQL:", f" {answer}", text, (source,))


def _column(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name = rng.choice(columns)
    return f"[{name}]", f'"{name}"'


def _plain(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name = rng.choice(columns)
    return name, name


def _is_null(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name, other = rng.choice(columns), rng.choice(("0", "'none'", "''", "-1"))
    return f"ISNULL({name}, {other})", f"COALESCE({name}, {other})"


def _len(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name = rng.choice(columns)
    return f"LEN({name})", f"LENGTH({name})"


def _join(rng: random.Random, columns: tuple[str, ...]) -> Both:
    first, second = rng.sample(columns, 2)
    return f"{first} + ' ' + {second}", f"{first} || ' ' || {second}"


def _convert(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name = rng.choice(columns)
    theirs, ours = rng.choice((("INT", "INTEGER"), ("NVARCHAR(50)", "VARCHAR(50)"), ("DATETIME", "TIMESTAMP")))
    return f"CONVERT({theirs}, {name})", f"CAST({name} AS {ours})"


def _year(rng: random.Random, columns: tuple[str, ...]) -> Both:
    part = rng.choice(("YEAR", "MONTH", "DAY"))
    return f"{part}({columns[-1]})", f"EXTRACT({part} FROM {columns[-1]})"


def _either(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name, bound = rng.choice(columns), rng.randrange(1, 500)
    return f"IIF({name} > {bound}, 1, 0)", f"CASE WHEN {name} > {bound} THEN 1 ELSE 0 END"


def _now(rng: random.Random, columns: tuple[str, ...]) -> Both:
    return "GETDATE()", "NOW()"


def _new_id(rng: random.Random, columns: tuple[str, ...]) -> Both:
    return "NEWID()", "GEN_RANDOM_UUID()"


def _anywhere(rng: random.Random, columns: tuple[str, ...]) -> Both:
    return "", ""


def _recent(rng: random.Random, columns: tuple[str, ...]) -> Both:
    unit, number, name = rng.choice(UNITS), rng.randrange(1, 60), columns[-1]
    theirs = f" WHERE {name} > DATEADD({unit}, -{number}, GETDATE())"
    return theirs, f" WHERE {name} > NOW() - INTERVAL '{number} {unit}'"


def _compared(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name, bound = rng.choice(columns), rng.randrange(1, 900)
    sign = rng.choice(("=", ">", "<"))
    return f" WHERE [{name}] {sign} {bound}", f' WHERE "{name}" {sign} {bound}'


def _contains(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name, word = rng.choice(columns), rng.choice(("new", "oak", "north", "a-1", "paris", "blue"))
    return f" WHERE CHARINDEX('{word}', {name}) > 0", f" WHERE POSITION('{word}' IN {name}) > 0"


def _flag(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name, truth = rng.choice(columns), rng.randrange(2)
    return f" WHERE {name} = CAST({truth} AS BIT)", f" WHERE {name} = {('FALSE', 'TRUE')[truth]}"


def _none(rng: random.Random, columns: tuple[str, ...]) -> Both:
    name = rng.choice(columns)
    return f" WHERE ISNULL({name}, '') <> ''", f" WHERE COALESCE({name}, '') <> ''"


_SHOWN: dict[str, Draw] = {
    **{"column": _column, "plain": _plain, "isnull": _is_null, "len": _len, "join": _join, "convert": _convert},
    **{"year": _year, "either": _either, "now": _now, "new id": _new_id},
}
_TESTED: dict[str, Draw] = {
    **{"anywhere": _anywhere, "recent": _recent, "compared": _compared, "contains": _contains, "flag": _flag},
    **{"none": _none},
}
