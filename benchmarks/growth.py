"""
How the cost of auditing grows: with the size of a flush, with the size of the trail, with time.

``python -m benchmarks.growth flush|trail|memory|leak --database URL`` prints a Markdown table.
Nothing in it should grow.
"""

import argparse
import gc
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event, select, text
from sqlalchemy.orm import Session

from benchmarks.contestants import Contestant, make_contestant
from benchmarks.databases import Databases
from benchmarks.models import values_of
from sqlaudit import get_resource_changes_sync

__all__ = ["main"]

_FLUSHES = (10, 100, 1000, 10_000, 100_000)
_TRAILS = (0, 10_000, 100_000, 1_000_000)


def main() -> None:
    """Measure one kind of growth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("what", choices=["flush", "trail", "memory", "leak"])
    parser.add_argument("--database", default="sqlite+pysqlite://")
    parser.add_argument("--largest", type=int, help="objects per flush, rows in the trail")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--flushes", type=int, default=5000, help="of the search for leaks")
    arguments = parser.parse_args()
    databases = Databases(arguments.database)
    ours = make_contestant("sqlaudit", databases.kind)
    warnings.simplefilter("ignore")
    try:
        if arguments.what == "flush":
            lines = per_flush(databases, ours, arguments.largest or _FLUSHES[-1], arguments.repeat)
        elif arguments.what == "trail":
            lines = per_trail(databases, ours, arguments.largest or _TRAILS[-1], arguments.repeat)
        elif arguments.what == "memory":
            lines = memory_per_flush(databases, ours, arguments.largest or _FLUSHES[-1])
        else:
            lines = leaks(databases, ours, arguments.flushes)
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    finally:
        databases.drop_all()


@contextmanager
def _fresh(databases: Databases, contestant: Contestant) -> Iterator[Engine]:
    name = databases.create()
    engine = databases.engine(name)
    with engine.begin() as connection:
        contestant.create_tables(connection)
    try:
        yield engine
    finally:
        engine.dispose()
        databases.drop(name)


def _statements(engine: Engine) -> list[str]:
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    return sent


def _insert(session: Session, model: Any, count: int) -> None:
    session.add_all([model(**values_of(number)) for number in range(count)])
    session.flush()


def _change(session: Session, model: Any, count: int) -> None:
    for found in session.scalars(select(model).limit(count)).all():
        found.quantity += 1
    session.flush()


def per_flush(databases: Databases, ours: Contestant, largest: int, repeat: int) -> Iterator[str]:
    """Yield the cost of an insert and of an update, with and without an audit, for flushes of all sizes."""
    yield (
        "| objects per flush | statements added to an insert | audited insert, µs | plain, µs | the audit's, µs "
        "| statements added to an update | audited update, µs | plain, µs | the audit's, µs |"
    )
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for count in (size for size in _FLUSHES if size <= largest):
        figures: list[float] = []
        numbers: list[int] = []
        for write in (_insert, _change):
            times: dict[bool, list[float]] = {True: [], False: []}
            statements: dict[bool, int] = {}
            # The untracked model isn't audited, hooks or not.
            models = {True: ours.models.item, False: ours.models.untracked}
            with _fresh(databases, ours) as engine, ours.acting():
                sent = _statements(engine)
                for model in models.values():
                    with Session(engine) as session:
                        _insert(session, model, count)
                        session.commit()
                # One that isn't counted, then by turns.
                turns = max(repeat, min(200, 2000 // count))
                for turn in range(turns + 1):
                    for audited, model in models.items():
                        with Session(engine) as session:
                            session.connection()
                            del sent[:]
                            gc.collect()
                            start = time.perf_counter()
                            write(session, model, count)
                            took = time.perf_counter() - start
                            statements[audited] = len(sent)
                            session.rollback()
                        if turn:
                            times[audited].append(took / count * 1e6)
                numbers.append(statements[True] - statements[False])
            figures += [statistics.median(times[True]), statistics.median(times[False])]
        insert, plain_insert, update, plain_update = figures
        yield (
            f"| {count:,} | {numbers[0]} | {insert:.1f} | {plain_insert:.1f} | {insert - plain_insert:.1f} "
            f"| {numbers[1]} | {update:.1f} | {plain_update:.1f} | {update - plain_update:.1f} |"
        )


_FILL = {
    "postgresql": """
        INSERT INTO sqlaudit_change
            (transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, new_values)
        SELECT gen_random_uuid(), now() - INTERVAL '1 year', 'insert', 'Item', number::text, (number % 100)::text,
               jsonb_build_object('name', 'Item ' || number, 'quantity', number)
        FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS number""",
    "sqlite": """
        INSERT INTO sqlaudit_change
            (transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, new_values)
        WITH RECURSIVE numbers(number) AS (SELECT :first UNION ALL SELECT number + 1 FROM numbers WHERE number < :last)
        SELECT lower(hex(randomblob(16))), '2025-01-01 00:00:00.000000', 'insert', 'Item', CAST(number AS TEXT),
               CAST(number % 100 AS TEXT), json_object('name', 'Item ' || number, 'quantity', number)
        FROM numbers""",
}


def _fill(connection: Connection, first: int, last: int) -> None:
    if last >= first:
        connection.execute(text(_FILL[connection.dialect.name]), {"first": first, "last": last})


def per_trail(databases: Databases, ours: Contestant, largest: int, repeat: int) -> Iterator[str]:
    """Yield the cost of a flush and of reading a history, beside a trail that grows."""
    yield "| rows in the trail | 1,000 inserts, one flush, ms | one insert, committed, ms | one history, ms |"
    yield "|--:|--:|--:|--:|"
    item = ours.models.item
    # Beyond the keys that the flushes get, so that histories aren't mixed.
    offset = 1_000_000_000
    with _fresh(databases, ours) as engine, ours.acting():
        filled = 0
        for size in (size for size in _TRAILS if size <= largest):
            with engine.begin() as connection:
                _fill(connection, offset + filled + 1, offset + size)
            filled = size
            if databases.kind == "postgresql":
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(text("VACUUM ANALYZE sqlaudit_change"))
                    connection.execute(text("CHECKPOINT"))
            flushes, commits, reads = [], [], []
            for _ in range(repeat + 1):
                with Session(engine) as session:
                    session.connection()
                    start = time.perf_counter()
                    _insert(session, item, 1000)
                    flushes.append((time.perf_counter() - start) * 1000)
                    session.rollback()
                with Session(engine) as session:
                    start = time.perf_counter()
                    session.add(item(**values_of(1)))
                    session.commit()
                    commits.append((time.perf_counter() - start) * 1000)
                    start = time.perf_counter()
                    get_resource_changes_sync(item, offset + size // 2, session)
                    reads.append((time.perf_counter() - start) * 1000)
            flush, commit, read = (statistics.median(figures[1:]) for figures in (flushes, commits, reads))
            yield f"| {size:,} | {flush:.1f} | {commit:.2f} | {read:.2f} |"


def memory_per_flush(databases: Databases, ours: Contestant, largest: int) -> Iterator[str]:
    """Yield the peak of Python's memory in a flush, with and without an audit."""
    yield "| objects per flush | audited, peak bytes per object | plain | the audit's |"
    yield "|--:|--:|--:|--:|"
    for count in (size for size in _FLUSHES if size <= largest):
        peaks = []
        for model in (ours.models.item, ours.models.untracked):
            peak = 0
            with _fresh(databases, ours) as engine, ours.acting():
                for warm in (True, False):
                    with Session(engine) as session:
                        session.add_all([model(**values_of(number)) for number in range(10 if warm else count)])
                        gc.collect()
                        tracemalloc.start()
                        session.flush()
                        peak = tracemalloc.get_traced_memory()[1]
                        tracemalloc.stop()
                        session.rollback()
            peaks.append(peak / count)
        yield f"| {count:,} | {peaks[0]:,.0f} | {peaks[1]:,.0f} | {peaks[0] - peaks[1]:,.0f} |"


def leaks(databases: Databases, ours: Contestant, flushes: int) -> Iterator[str]:
    """Yield how much memory is in use after more and more flushes, in sessions old and new."""
    yield "| flushes | in use, KB | objects |"
    yield "|--:|--:|--:|"
    item = ours.models.item
    with _fresh(databases, ours) as engine, ours.acting():
        if databases.kind == "sqlite":
            # It's not the disk that is measured.
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA synchronous = OFF"))
        lasting = Session(engine)
        done = 0
        with lasting:
            for part in range(11):
                while done < flushes * part // 10:
                    with Session(engine) as session:
                        made = item(**values_of(done))
                        session.add(made)
                        session.flush()
                        made.quantity += 1
                        session.commit()
                        session.delete(made)
                        session.commit()
                    lasting.add(item(**values_of(done)))
                    lasting.commit()
                    lasting.expunge_all()
                    done += 4
                if part == 0:
                    # What is made once and kept isn't a leak.
                    for _ in range(25):
                        lasting.add(item(**values_of(0)))
                        lasting.commit()
                    lasting.expunge_all()
                    gc.collect()
                    tracemalloc.start()
                gc.collect()
                current, _ = tracemalloc.get_traced_memory()
                yield f"| {done:,} | {current / 1000:,.1f} | {len(gc.get_objects()):,} |"
        top = tracemalloc.take_snapshot().statistics("lineno")[:5]
        tracemalloc.stop()
    yield ""
    yield "The largest allocations that are left: " + "; ".join(str(line) for line in top)


if __name__ == "__main__":
    main()
