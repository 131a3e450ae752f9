"""
What the size of the trail costs on PostgreSQL: the time of each question, and the price of each index.

    python benchmarks/trail_size.py postgresql+psycopg://postgres@127.0.0.1/postgres 50000 5000000

makes a schema of its own for each size, fills it, asks, and drops it. The answers
have the same size, however large the trail is: what grows is what has to be searched.
"""

import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import DropIndex

from sqlaudit import SQLAuditConfig, get_changes_sync, track_table, trail_table

SCHEMA = "sqlaudit_benchmark"
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
MONTHS = 24
REPEATS = 40
INSERTED = 20_000
TURNS = 9


class Base(DeclarativeBase):
    pass


@track_table(table_label="Bench0")
class Thing(Base):
    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]


# Every resource has 20 changes, three changes are a transaction, an actor makes 200 changes a month; one resource,
# whose id is 0, has 100. The transaction ids grow with time, as UUIDv7 does.
FILL = f"""
INSERT INTO {SCHEMA}.sqlaudit_change
    (transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, reason, context,
     old_values, new_values)
SELECT
    (lpad(to_hex(1704067200000 + n / 3 * 10), 12, '0') || '7' || substr(md5((n / 3)::text), 1, 3) || '8'
     || substr(md5((n / 3)::text), 4, 15))::uuid,
    timestamptz '2024-01-01 00:00:00Z' + n * (interval '{MONTHS * 30} days' / :size),
    CASE WHEN n < :size / 20 THEN 'insert' ELSE 'update' END,
    CASE WHEN n % (:size / 100) = 0 THEN 'Bench0' ELSE 'Bench' || n % 10 END,
    CASE WHEN n % (:size / 100) = 0 THEN '0' ELSE (1 + n % (:size / 20))::text END,
    (1 + (n * 7919) % greatest(:size / {MONTHS * 200}, 1))::text,
    CASE WHEN n % 3 = 0 THEN 'a reason of some words' END,
    jsonb_build_object('request_id', substr(md5((n / 3)::text), 1, 16)),
    jsonb_build_object('name', 'name ' || n, 'amount', n),
    jsonb_build_object('name', 'name ' || (n + 1), 'amount', n + 1)
FROM generate_series(CAST(:start AS bigint), :stop - 1) AS n
"""

CANDIDATES = {
    "type and id": "CREATE INDEX candidate ON {table} (resource_type, id)",
    "actor and id": "CREATE INDEX candidate ON {table} (changed_by, id)",
    "time": "CREATE INDEX candidate ON {table} (recorded_at)",
}


def main(url: str, *sizes: str) -> None:
    engine = create_engine(url)
    times: dict[str, list[Times]] = {}
    for size in map(int, sizes):
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        try:
            trail = trail_table(schema=SCHEMA)
            fill(engine, trail, size)
            for name, (elapsed, _) in ask(engine, trail, size).items():
                times.setdefault(name, []).append(elapsed)
            weigh(engine, trail, size)
        finally:
            with engine.begin() as connection:
                connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    for kind in Times._fields:
        print(f"\n{kind} times, ms, and the last by the first")
        for name, each in times.items():
            values = [1000 * getattr(elapsed, kind) for elapsed in each]
            print(f"  {name:45}" + "".join(f"{value:10.2f}" for value in values) + f"   x {values[-1] / values[0]:.2f}")


def fill(engine: Engine, trail: Any, size: int) -> None:
    """Make a trail of *size* changes; its indexes are built afterwards."""
    began = time.perf_counter()
    indexes = list(trail.indexes)
    with engine.begin() as connection:
        trail.create(connection)
        for index in indexes:
            index.drop(connection)
        for start in range(0, size, 500_000):
            connection.execute(text(FILL), {"size": size, "start": start, "stop": min(size, start + 500_000)})
        for index in indexes:
            index.create(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {trail.fullname}"))
        width = connection.scalar(text(f"SELECT pg_relation_size('{trail.fullname}')")) / size
    print(f"\n{size:,} changes, {width:.0f} bytes each in the table, made in {time.perf_counter() - began:.0f} s")


class Times(NamedTuple):
    """Of one question, in seconds."""

    median: float
    best: float


def ask(bind: Engine | Connection, trail: Any, size: int, *, told: bool = True) -> dict[str, tuple[Times, str]]:
    """Return the times of each question and what its plan reads."""
    config = SQLAuditConfig(trail=trail)
    middle = BEGAN + timedelta(days=MONTHS * 15)
    times = {}
    with Session(bind) as session:
        one: Any = get_changes_sync(Thing, session=session, config=config, limit=1, id_range=(size // 2, None))[0]
        questions: dict[str, dict[str, Any]] = {
            "history of a resource, 100 changes": {"model": Thing, "resource_ids": 0},
            "newest page of 50": {"limit": 50},
            "newest page of 50, one model": {"model": Thing, "limit": 50},
            "an actor's changes in a month": {"user_ids": 1, "date_range": (middle, middle + timedelta(days=30))},
            "an actor's newest page of 50": {"user_ids": 1, "limit": 50},
            "one transaction": {"transaction_id": one.transaction_id},
            "a resource up to an id (snapshot)": {"model": Thing, "resource_ids": 0, "id_range": (None, size // 2)},
            "a page of 50, an hour long ago": {"date_range": (BEGAN, BEGAN + timedelta(hours=1)), "limit": 50},
        }
        for name, arguments in questions.items():

            def question(given: dict[str, Any] = arguments) -> list[Any]:
                return get_changes_sync(session=session, config=config, **given)

            plan = plan_of(session.connection(), question)
            found = question()
            times[name] = time_of(question), plan
            if told:
                print(f"  {name:41}{len(found):6} changes {1000 * times[name][0].median:10.2f} ms   {plan}")
    return times


def plan_of(connection: Connection, question: Callable[[], Any]) -> str:
    """Return the nodes of the plan that read something, for the statement that *question* sends."""
    sent: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        sent.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", listen)
    question()
    event.remove(connection, "before_cursor_execute", listen)
    plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {sent[-1][0]}", sent[-1][1]).scalars()
    return "; ".join(line.split("(cost")[0].strip(" ->") for line in plan if "Scan" in line)


def time_of(question: Callable[[], Any]) -> Times:
    elapsed = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        question()
        elapsed.append(time.perf_counter() - began)
    return Times(statistics.median(elapsed), min(elapsed))


def insert_time(connection: Connection, size: int) -> float:
    savepoint = connection.begin_nested()
    began = time.perf_counter()
    connection.execute(text(FILL), {"size": size, "start": size, "stop": size + INSERTED})
    elapsed = time.perf_counter() - began
    savepoint.rollback()
    return elapsed / INSERTED * 1e6


def bytes_of(connection: Connection, index: str, size: int) -> float:
    return float(connection.scalar(text(f"SELECT pg_relation_size('{SCHEMA}.{index}')")) or 0) / size


def difference(connection: Connection, ddl: Any, size: int) -> float:
    """Return how much longer an INSERT takes after *ddl*, which is undone: measured by turns."""
    plain: list[float] = []
    changed: list[float] = []
    for turn in range(2 * TURNS):
        with connection.begin() as transaction:
            if turn % 2:
                connection.execute(ddl)
            (changed if turn % 2 else plain).append(insert_time(connection, size))
            transaction.rollback()
    return min(changed) - min(plain)


def weigh(engine: Engine, trail: Any, size: int) -> None:
    """Print what each index, and each that could be, costs: bytes per change, and time per change written."""
    indexes = sorted(trail.indexes, key=lambda each: str(each.name))
    with engine.connect() as connection:
        with connection.begin():
            weights = {
                name: bytes_of(connection, name, size) for name in (f"{trail.name}_pkey", *(i.name for i in indexes))
            }
        # First what is asked, then what is written: that leaves dead rows behind.
        candidates = {}
        for name, ddl in CANDIDATES.items():
            with connection.begin() as transaction:
                connection.execute(text(ddl.format(table=trail.fullname)))
                candidates[name] = bytes_of(connection, "candidate", size), ask(connection, trail, size, told=False)
                transaction.rollback()
        with connection.begin() as transaction:
            total = min(insert_time(connection, size) for _ in range(TURNS))
            transaction.rollback()
        print(f"  a change is written in {total:.1f} µs, by a statement of many")
        print(f"  the primary key {weights[f'{trail.name}_pkey']:36.0f} bytes")
        for index in indexes:
            cost = -difference(connection, DropIndex(index), size)
            print(f"  {index.name:45}{weights[index.name]:6.0f} bytes {cost:6.1f} µs")
        for name, (weight, asked) in candidates.items():
            creation = text(CANDIDATES[name].format(table=trail.fullname))
            cost = difference(connection, creation, size) if size <= 1_000_000 else float("nan")
            print(f"  (not there) {name:33}{weight:6.0f} bytes {cost:6.1f} µs")
            for question, (elapsed, plan) in asked.items():
                if "candidate" in plan:
                    print(f"      {question:41}{1000 * elapsed.best:10.2f} ms   {plan}")


if __name__ == "__main__":
    main(*sys.argv[1:])
