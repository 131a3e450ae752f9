"""
sqlalchemy-audit-trail: https://wiktorb2004.github.io/sqlalchemy-audit-trail/.

As in its README. At its fastest: ``on_error="raise"``, which saves a savepoint per flush, its README says.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from audit_trail import Audited, AuditTrail
from audit_trail.maintenance import ensure_partitions
from audit_trail.migrations import create_audit_tables
from sqlalchemy import Connection, create_engine, insert
from sqlalchemy.orm import Session

from benchmarks.contestants.base import Contestant, history_entries, in_chunks
from benchmarks.models import Models, as_json, define_models


class AuditTrailPeer(Contestant):
    """Two partitioned tables in a schema of their own."""

    trail_tables = ("audit.audit_activity", "audit.audit_transaction")

    def __init__(self, models: Models, *, tuned: bool) -> None:
        super().__init__(models)
        # The engine is for durable events and maintenance, which are not measured.
        self._audit: Any = AuditTrail(
            create_engine("postgresql+psycopg://"), events=[], on_error="raise" if tuned else "log", warn_on_bulk=False
        )

        class AppSession(Session):
            pass

        self.session_class = AppSession
        self._audit.install(AppSession)

    def create_tables(self, connection: Connection) -> None:
        """Create its tables and this month's partitions, too."""
        super().create_tables(connection)
        create_audit_tables(connection, self._audit.tables, self._audit.severities)
        ensure_partitions(connection, self._audit.tables, self._audit.severities)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """User 42."""
        with self._audit.context(actor_type="user", actor_id="42"):
            yield

    def fill_history(self, connection: Connection, size: int) -> None:
        """Write the activities, a transaction each."""
        tables = self._audit.tables
        now = dt.datetime.now(dt.UTC)
        for chunk in in_chunks(enumerate(history_entries(size), 1)):
            connection.execute(
                insert(tables.transaction), [{"actor_type": "user", "actor_id": "42", "issued_at": now} for _ in chunk]
            )
            connection.execute(
                insert(tables.activity),
                [
                    {
                        "transaction_id": number,
                        "verb": "entity.created" if operation == "insert" else "entity.updated",
                        "severity": int(self._audit.severities.INFO),
                        "object_type": "Item",
                        "object_id": str(key),
                        "actor_id": "42",
                        "created_at": now,
                        "data": {
                            "changes": {name: [None, value] for name, value in as_json(key).items()}
                            if operation == "insert"
                            else {"quantity": [values["quantity"] - 1, values["quantity"]]}
                        },
                    }
                    for number, (operation, key, values) in chunk
                ],
            )

    def read_history(self, session: Session, key: int) -> int:
        """Page through ``object_history``, with the longest pages that it has."""
        found, cursor = 0, None
        while True:
            page = self._audit.query.object_history(session, "Item", str(key), cursor=cursor, limit=100)
            found += sum(len(group.activities) for group in page.groups)
            cursor = page.next_cursor
            if cursor is None:
                return found


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    return AuditTrailPeer(define_models(mixins=(Audited,)), tuned=tuned)
