"""
A process with one contestant in it: does the runs that it is told to, one JSON line each.

Libraries that hook the global Mapper and Session would disturb each other in
one process. ``python -m benchmarks.worker CONTESTANT URL`` is started by `measure`.
"""

import asyncio
import gc
import json
import sys
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from benchmarks.contestants import Contestant, make_contestant
from benchmarks.databases import Databases
from benchmarks.models import values_of
from benchmarks.workloads import FLUSHED_TOGETHER, WORKLOADS, Target, Workload

__all__ = ["Outcome", "main"]

_POOL = 10
"""Connections that W7's tasks share: more of them than cores, less than a server has."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run has shown."""

    seconds: float | None = None
    cpu_seconds: float | None = None
    """Of this process, the client: what other programs do to the machine hardly shows in it."""
    changes: int | None = None
    """How many the contestant has recorded, counted by SQL."""
    trail_bytes: int | None = None
    statements: int | None = None
    peak_bytes: int | None = None
    """Of Python's memory, above what there was before; in inspections alone."""
    error: str | None = None


class Worker:
    """Runs workloads on fresh databases."""

    def __init__(self, contestant: Contestant, databases: Databases) -> None:
        self.contestant = contestant
        self.databases = databases
        self._templates: dict[tuple[str, int], str] = {}

    def run(self, workload: Workload, size: int, *, inspect: bool) -> Outcome:
        """Do a workload once; *inspect* counts its statements and traces its memory instead of measuring its time."""
        template = self._template(workload.fixture, size * workload.left)
        is_copy = workload.fixture != "history"
        name = self.databases.create(template) if is_copy else template
        try:
            return self._run_on(name, workload, size, inspect=inspect)
        except Exception as error:  # noqa: BLE001 (a peer may fail in any way, and that is reported)
            traceback.print_exc()
            return Outcome(error=_name_of(error))
        finally:
            if is_copy:
                self.databases.drop(name)

    def _run_on(self, name: str, workload: Workload, size: int, *, inspect: bool) -> Outcome:
        # The floor's rows are made before the clock starts.
        self.contestant.expect(workload.trail(size))
        before = self._trail_of(name)
        outcome = Outcome()
        if self.databases.is_async:
            asyncio.run(self._measure_async(name, workload, size, outcome, inspect=inspect))
        else:
            self._measure(name, workload, size, outcome, inspect=inspect)
        after = self._trail_of(name)
        outcome.changes = after[0] - before[0]
        outcome.trail_bytes = None if after[1] is None or before[1] is None else after[1] - before[1]
        return outcome

    def _measure(self, name: str, workload: Workload, size: int, outcome: Outcome, *, inspect: bool) -> None:
        engine = self.databases.engine(name)
        try:
            if workload.run is None:
                raise NotImplementedError(workload.name)
            target = self._target(size, lambda: self.contestant.session_class(engine))
            with engine.connect(), self.contestant.acting(), _clock(engine, outcome, inspect=inspect):
                workload.run(target)
        finally:
            engine.dispose()

    async def _measure_async(
        self, name: str, workload: Workload, size: int, outcome: Outcome, *, inspect: bool
    ) -> None:
        engine = self.databases.async_engine(name, pool_size=_POOL, max_overflow=0)
        sync_class = self.contestant.session_class
        try:
            async with engine.connect():
                pass
            with self.contestant.acting(), _clock(engine.sync_engine, outcome, inspect=inspect):
                if workload.run_async is not None:
                    await workload.run_async(self.contestant.models, engine, AsyncSession, sync_class, size)
                elif workload.run is not None:
                    target = self._target(size, lambda: sync_class(engine.sync_engine))
                    run = workload.run
                    async with AsyncSession(engine, sync_session_class=sync_class) as session:
                        await session.run_sync(lambda _: run(target))
        finally:
            await engine.dispose()

    def _target(self, size: int, open_session: Callable[[], Session]) -> Target:
        return Target(self.contestant.models, size, open_session, self.contestant.read_history)

    def _template(self, fixture: str, size: int) -> str:
        """Return the database that runs begin with; made once."""
        key = (fixture, 0 if fixture == "empty" else size)
        if key not in self._templates:
            name = self.databases.create()
            engine = self.databases.engine(name)
            with engine.begin() as connection:
                self.contestant.create_tables(connection)
            if fixture == "filled":
                self._fill(engine, size)
            if fixture == "history":
                with engine.begin() as connection:
                    self.contestant.fill_history(connection, size)
            engine.dispose()
            self.databases.settle(name)
            self._templates[key] = name
        return self._templates[key]

    def _fill(self, engine: Engine, size: int) -> None:
        # As the application has: with the contestant's hooks, so that the rows have a past.
        self.contestant.expect([])
        item = self.contestant.models.item
        with self.contestant.acting(), self.contestant.session_class(engine) as session:
            for start in range(1, size + 1, FLUSHED_TOGETHER):
                numbers = range(start, min(start + FLUSHED_TOGETHER, size + 1))
                session.add_all([item(**values_of(number)) for number in numbers])
                session.commit()

    def _trail_of(self, name: str) -> tuple[int, int | None]:
        """Return how many changes are recorded, and the bytes that they take with their indexes."""
        engine = self.databases.engine(name)
        try:
            with engine.connect() as connection:
                count = self.contestant.count_changes(connection)
                return count, _bytes_of(connection, self.contestant.trail_tables)
        finally:
            engine.dispose()


def _bytes_of(connection: Connection, tables: tuple[str, ...]) -> int | None:
    if connection.dialect.name == "postgresql":
        sizes = [
            connection.scalar(
                text("SELECT SUM(pg_total_relation_size(relid)) FROM pg_partition_tree(CAST(:name AS regclass))"),
                {"name": name},
            )
            # An ordinary table is no tree.
            or connection.scalar(text("SELECT pg_total_relation_size(CAST(:name AS regclass))"), {"name": name})
            for name in tables
        ]
        return int(sum(sizes))
    try:
        # A module that SQLite may be built without.
        query = text(
            "SELECT COALESCE(SUM(pgsize), 0) FROM dbstat WHERE name IN "
            "(SELECT name FROM sqlite_master WHERE tbl_name = :name)"
        )
        return int(sum(connection.scalar(query, {"name": name}) or 0 for name in tables))
    except Exception:  # noqa: BLE001 (then nobody knows)
        return None


@contextmanager
def _clock(engine: Engine, outcome: Outcome, *, inspect: bool) -> Iterator[None]:
    """Measure what is done within: its time, or its statements and its memory."""
    gc.collect()
    if not inspect:
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        outcome.seconds, outcome.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    event.listen(engine, "before_cursor_execute", count)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        outcome.peak_bytes = peak - before
        outcome.statements = statements
    finally:
        tracemalloc.stop()
        event.remove(engine, "before_cursor_execute", count)


def _name_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def main(name: str, url: str) -> None:
    """Answer commands until the input ends."""
    warnings.simplefilter("ignore")
    # What libraries print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    databases = Databases(url)
    try:
        worker = Worker(make_contestant(name, databases.kind), databases)
        for line in sys.stdin:
            command = json.loads(line)
            outcome = worker.run(WORKLOADS[command["workload"]], command["size"], inspect=command["inspect"])
            print(json.dumps(asdict(outcome)), file=answers, flush=True)
    finally:
        databases.drop_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
