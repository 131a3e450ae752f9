"""
The floor: plain SQLAlchemy, and one Core INSERT of the rows of the trail per flush.

The rows are prepared before the measured time: whoever stores changes as JSON
in a table with these columns and indexes has to pay this, and then for
finding out what changed. It is no audit trail.
"""

import datetime as dt
import uuid
from collections import deque
from typing import Any

from sqlalchemy import Connection, event, func, insert, select
from sqlalchemy.orm import ORMExecuteState, Session

from benchmarks.contestants.base import Contestant, history_entries, in_chunks
from benchmarks.models import Models, as_json, define_models
from benchmarks.workloads import Batch
from sqlaudit.tables import trail_table

_trail = trail_table("bench_floor")


class Floor(Contestant):
    """Writes what it was told to write."""

    trail_tables = ("bench_floor",)

    def __init__(self, models: Models, kind: str) -> None:
        super().__init__(models)
        self._kind = kind
        self._batches: deque[Batch] = deque()

        class FloorSession(Session):
            pass

        self.session_class = FloorSession
        event.listen(FloorSession, "after_flush", lambda session, _: self._write(session))
        event.listen(FloorSession, "do_orm_execute", self._execute)

    def create_tables(self, connection: Connection) -> None:
        """Create the floor's table, too."""
        super().create_tables(connection)
        _trail.create(connection)

    def expect(self, batches: list[Batch]) -> None:
        """Prepare the rows that the coming flushes write."""
        for batch in batches:
            known = {"transaction_id": uuid.uuid4()}
            if self._kind == "sqlite":
                known["recorded_at"] = dt.datetime.now(dt.UTC)  # type: ignore[assignment]
            for row in batch:
                row.update(known)
        self._batches = deque(batches)

    def _write(self, session: Session) -> None:
        if self._batches:
            session.connection().execute(_insert(self._kind), self._batches.popleft())

    def _execute(self, state: ORMExecuteState) -> Any:
        if not state.is_update:
            return None
        result = state.invoke_statement()
        self._write(state.session)
        return result

    def fill_history(self, connection: Connection, size: int) -> None:
        """Write as many rows."""
        for chunk in in_chunks(history_entries(size)):
            connection.execute(_insert(self._kind), [_row(*entry, self._kind) for entry in chunk])

    def read_history(self, session: Session, key: int) -> int:
        """Select the rows, by the index."""
        wanted = select(_trail).where(_trail.c.resource_type == "Item", _trail.c.resource_id == str(key))
        return len(session.connection().execute(wanted.order_by(_trail.c.id)).all())


def _insert(kind: str) -> Any:
    statement = insert(_trail)
    return statement if kind == "sqlite" else statement.values(recorded_at=func.clock_timestamp())


def _row(operation: str, key: int, values: dict[str, Any], kind: str) -> dict[str, Any]:
    stored = as_json(key) if operation == "insert" else {"quantity": values["quantity"]}
    row = {
        "transaction_id": uuid.uuid4(),
        "operation": operation,
        "resource_type": "Item",
        "resource_id": str(key),
        "changed_by": "42",
        "reason": "benchmark",
        "old_values": None if operation == "insert" else {"quantity": values["quantity"] - 1},
        "new_values": stored,
    }
    return row | ({"recorded_at": dt.datetime.now(dt.UTC)} if kind == "sqlite" else {})


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    return Floor(define_models(), kind)
