"""
What PostgreSQL's triggers cost, beside the least that somebody would write by hand.

    python -m benchmarks.triggers postgresql+psycopg://postgres@127.0.0.1/postgres

makes a schema of its own with three tables of one shape: without triggers, with triggers of a few lines, which store
old and new row as JSONB once for a statement, and with ours. Both trails have the same columns and indexes. They take
turns; each turn is a transaction that is rolled back, so that no COMMIT is timed. Prints a Markdown table.
"""

import argparse
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    create_engine,
    event,
    text,
)

from sqlaudit import Capture, create_audit_tables_sync, track

SCHEMA = "sqlaudit_benchmark_triggers"
ROWS = 10_000
SINGLE = 1_000

METADATA = MetaData()


def _thing(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("name", Text),
        Column("email", Text),
        Column("amount", Numeric(10, 2)),
        Column("is_active", Boolean),
        Column("seen_at", DateTime(timezone=True)),
        Column("note", Text),
        Column("visits", Integer),
    )


TABLES = {"no triggers": _thing("plain"), "by hand": _thing("hand"), "sqlaudit": _thing("ours")}
track(TABLES["sqlaudit"], capture=Capture.TRIGGERS, table_label="Ours")

BY_HAND = """
CREATE FUNCTION hand_{operation}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE transaction uuid := md5(pg_current_xact_id()::text);
BEGIN
  INSERT INTO hand_change
    (transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, old_values, new_values)
  SELECT transaction, clock_timestamp(), '{operation}', 'Hand', id::text, current_setting('hand.user', true), {values}
  FROM {rows};
  RETURN NULL;
END $$;
CREATE TRIGGER hand_{operation} AFTER {operation} ON hand REFERENCING {tables}
FOR EACH STATEMENT EXECUTE FUNCTION hand_{operation}()
"""

OPERATIONS = (
    ("insert", "NEW TABLE AS n", "n", "NULL, to_jsonb(n)"),
    ("update", "OLD TABLE AS o NEW TABLE AS n", "o JOIN n USING (id)", "to_jsonb(o), to_jsonb(n)"),
    ("delete", "OLD TABLE AS o", "o", "to_jsonb(o), NULL"),
)

VALUES = "'name ' || n, 'user' || n || '@example.org', n * 1.25, mod(n, 2) = 0, now(), repeat('note ', mod(n, 9)), n"


class Workload(NamedTuple):
    """What is timed: statements, for a table named {table}."""

    name: str
    statements: Callable[[], Iterator[str]]


WORKLOADS = (
    Workload(
        f"UPDATE of 2 columns of {ROWS:,} rows",
        lambda: iter(["UPDATE {table} SET amount = amount + 1, note = 'changed'"]),
    ),
    Workload(
        f"{SINGLE:,} single UPDATEs",
        lambda: (f"UPDATE {{table}} SET visits = visits + 1 WHERE id = {key}" for key in range(SINGLE)),
    ),
    Workload(
        f"INSERT of {ROWS:,} rows",
        lambda: iter([f"INSERT INTO {{table}} SELECT n, {VALUES} FROM generate_series({ROWS}, {2 * ROWS - 1}) AS n"]),
    ),
    Workload(
        f"{SINGLE:,} single INSERTs",
        lambda: (
            f"INSERT INTO {{table}} SELECT n, {VALUES} FROM (VALUES ({ROWS + key})) AS one (n)" for key in range(SINGLE)
        ),
    ),
    Workload(f"DELETE of {ROWS:,} rows", lambda: iter(["DELETE FROM {table}"])),
)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triggers", description=__doc__)
    parser.add_argument("database", nargs="?", default="postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    engine = create_engine(arguments.database)
    event.listen(engine, "connect", _look_into_schema)
    try:
        prepare(engine)
        for line in measure(engine, arguments.repeat):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        engine.dispose()


def _look_into_schema(connection: Any, _: Any) -> None:
    connection.execute(f"SET search_path = {SCHEMA}")
    connection.commit()


def prepare(engine: Engine) -> None:
    """Make the tables, both trails and the triggers."""
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        METADATA.create_all(connection)
        create_audit_tables_sync(connection, metadata=METADATA)
        for table in TABLES.values():
            rows = f"SELECT n, {VALUES} FROM generate_series(0, {ROWS - 1}) AS n"
            connection.exec_driver_sql(f"INSERT INTO {table.name} {rows}")
        connection.exec_driver_sql("TRUNCATE sqlaudit_change")
        connection.exec_driver_sql("CREATE TABLE hand_change (LIKE sqlaudit_change INCLUDING ALL)")
        for operation, tables, rows, values in OPERATIONS:
            sql = BY_HAND.format(operation=operation, tables=tables, rows=rows, values=values)
            connection.exec_driver_sql(sql)


def measure(engine: Engine, repeat: int) -> Iterator[str]:
    """Yield the lines of the table: medians, and the ratio of ours to those by hand, turn by turn."""
    with engine.connect() as connection:
        version = connection.scalar(text("SHOW server_version"))
    yield f"PostgreSQL {version}, {repeat} turns; ms, median (least to most)\n"
    yield f"| | {' | '.join(TABLES)} | sqlaudit : by hand, median | half of the turns |"
    yield "|---|--:|--:|--:|--:|--:|"
    for workload in WORKLOADS:
        times: dict[str, list[float]] = {name: [] for name in TABLES}
        for turn in range(repeat + 1):
            names = [*TABLES][turn % 3 :] + [*TABLES][: turn % 3]
            for name in names:
                elapsed = _time(engine, workload, TABLES[name].name)
                # The first turn makes plans and files.
                times[name] += [elapsed] if turn else []
        ratios = [ours / theirs for ours, theirs in zip(times["sqlaudit"], times["by hand"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        cells = [
            f"{1000 * statistics.median(each):.0f} ({1000 * min(each):.0f} to {1000 * max(each):.0f})"
            for each in times.values()
        ]
        yield (
            f"| {workload.name} | {' | '.join(cells)} | **{statistics.median(ratios):.2f}** | {low:.2f} to {high:.2f} |"
        )


def _time(engine: Engine, workload: Workload, table: str) -> float:
    with engine.connect() as connection:
        _tell_actor(connection)
        cursor: Any = connection.connection.cursor()
        statements = [statement.format(table=table) for statement in workload.statements()]
        began = time.perf_counter()
        for statement in statements:
            cursor.execute(statement)
        elapsed = time.perf_counter() - began
        connection.rollback()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for each in (table, "hand_change", "sqlaudit_change"):
            connection.execute(text(f"VACUUM {each}"))
    return elapsed


def _tell_actor(connection: Connection) -> None:
    """Tell it as a session does."""
    document = json.dumps(
        {"transaction": str(uuid.uuid4()), "user": "42", "impersonator": None, "reason": None, "facts": None}
    )
    connection.execute(text("SELECT set_config('hand.user', '42', true)"))
    connection.execute(text("SELECT set_config('sqlaudit.published', :document, true)"), {"document": document})


if __name__ == "__main__":
    main()
