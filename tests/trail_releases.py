"""The trails of sqlaudit's releases: as they were made, what a database says of them, and what a next one may bring."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Index, String, text

import sqlaudit.tables
from observing import TRAIL
from sqlaudit.tables import SINCE

FROZEN = Path(__file__).parent / "frozen"
RELEASES = sorted({path.name.split(".")[0].removeprefix("trail_") for path in FROZEN.glob("*.sql")})
"""Every release that changed the trail's schema; the first one, too."""
NEWEST = sqlaudit.tables.newest_version()
NEXT = NEWEST + 1


def make_frozen_trail(connection: Connection, release: str) -> None:
    """Make the trail as *release* did, with four changes of customers, by plain SQL."""
    script = (FROZEN / f"trail_{release}.{connection.dialect.name}.sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


def catalogue(connection: Connection, table: str = TRAIL) -> list[str]:
    """Return all that the database's own catalogue says of *table*, line by line; [] if it isn't there."""
    lines = _CATALOGUES[connection.dialect.name](connection, table)
    return sorted(" ".join(str(line).replace(table, "<trail>").split()) for line in lines)


def _sqlite(connection: Connection, table: str) -> list[Any]:
    of_table = {"table": table}
    columns = connection.execute(text("SELECT * FROM pragma_table_xinfo(:table)"), of_table).all()
    query = text("SELECT name, sql FROM sqlite_master WHERE tbl_name = :table AND type = 'index'")
    made = connection.execute(
        text("SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE name = :table"), of_table
    )
    return [*columns, *connection.execute(query, of_table), *made]


def _postgresql(connection: Connection, table: str) -> list[Any]:
    queries = (
        """
        SELECT row_number() OVER (ORDER BY ordinal_position), column_name, data_type, udt_name,
               character_maximum_length, is_nullable, column_default, is_identity, identity_generation,
               datetime_precision, collation_name,
               col_description(to_regclass(:table), ordinal_position::int)
        FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = :table
        """,
        """
        SELECT replace(indexdef, current_schema(), '') FROM pg_indexes
        WHERE schemaname = current_schema() AND tablename = :table
        """,
        "SELECT conname, contype, conkey FROM pg_constraint WHERE conrelid = to_regclass(:table) AND contype <> 'n'",
        "SELECT obj_description(oid) FROM pg_class WHERE oid = to_regclass(:table)",
    )
    return [row for query in queries for row in connection.execute(text(query), {"table": table})]


def _mariadb(connection: Connection, table: str) -> list[Any]:
    there = connection.execute(text("SHOW TABLES LIKE :table"), {"table": table}).all()
    if not there:
        return []
    made: str = connection.execute(text(f"SHOW CREATE TABLE {table}")).one()[1]
    return [line.rstrip(",") for line in re.sub(r" AUTO_INCREMENT=\d+", "", made).splitlines()]


_CATALOGUES = {"sqlite": _sqlite, "postgresql": _postgresql, "mariadb": _mariadb}


def release_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sqlaudit be a release whose trail has a column and two indexes more, one of them on PostgreSQL alone."""
    parts_of_today = sqlaudit.tables._parts

    def parts(name: str) -> list[Column[Any] | Index]:
        since = {SINCE: NEXT}
        return [
            *parts_of_today(name),
            Column("tenant", String(40), comment="whose customer's", info=since),
            Index(f"{name}_tenant", "tenant", "id", info=since),
            Index(f"{name}_tenants", "tenant", postgresql_using="hash", info=since).ddl_if(dialect="postgresql"),
        ]

    monkeypatch.setattr(sqlaudit.tables, "_parts", parts)
