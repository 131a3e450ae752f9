"""sqlaudit, as its README says: every column tracked, hooks on every session, an actor and a reason."""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, insert
from sqlalchemy.orm import Session

from benchmarks.contestants.base import Contestant, history_entries, in_chunks
from benchmarks.models import as_json, define_models
from sqlaudit import SQLAuditConfig, audit_context, get_resource_changes_sync, register_hooks, set_config, track_table
from sqlaudit.tables import change_table


class Ours(Contestant):
    """sqlaudit."""

    trail_tables = ("sqlaudit_change",)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """User 42."""
        with audit_context(user_id=42, reason="benchmark"):
            yield

    def fill_history(self, connection: Connection, size: int) -> None:
        """Write to the trail as a year's work of an application would."""
        is_sqlite = connection.dialect.name == "sqlite"
        statement = insert(change_table)
        if not is_sqlite:
            statement = statement.values(recorded_at=func.clock_timestamp())
        for chunk in in_chunks(history_entries(size)):
            connection.execute(
                statement,
                [
                    {
                        "transaction_id": uuid.uuid4(),
                        "operation": operation,
                        "resource_type": "Item",
                        "resource_id": str(key),
                        "changed_by": "42",
                        "reason": "benchmark",
                        "old_values": None if operation == "insert" else {"quantity": values["quantity"] - 1},
                        "new_values": as_json(key) if operation == "insert" else {"quantity": values["quantity"]},
                        **({"recorded_at": dt.datetime.now(dt.UTC)} if is_sqlite else {}),
                    }
                    for operation, key, values in chunk
                ],
            )

    def read_history(self, session: Session, key: int) -> int:
        """Call `get_resource_changes_sync`: field by field, typed."""
        return len(get_resource_changes_sync(self.models.item, key, session))


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    models = define_models(decorate=track_table())
    set_config(SQLAuditConfig())
    register_hooks()
    return Ours(models)
