"""
PostgreSQL-Audit: https://postgresql-audit.readthedocs.io/.

As in its documentation, with statement triggers (its default) and an actor. At its fastest: without an actor,
which saves the row of the transaction.
"""

from postgresql_audit import versioning_manager
from sqlalchemy import Connection, cast, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from benchmarks.contestants.base import Contestant, history_entries, in_chunks
from benchmarks.models import ITEM, Models, define_models


class PostgreSQLAuditPeer(Contestant):
    """Triggers, and one table of activities."""

    trail_tables = ("activity", "transaction")

    def __init__(self, models: Models, *, tuned: bool) -> None:
        super().__init__(models)
        versioning_manager.values = {} if tuned else {"actor_id": "42"}

    def fill_history(self, connection: Connection, size: int) -> None:
        """Do the changes: the triggers record them."""
        item = self.models.item.__table__
        pending: list[dict[str, object]] = []
        for operation, key, values in history_entries(size):
            if operation == "update":
                for chunk in in_chunks(pending, 1000):
                    connection.execute(insert(item), list(chunk))
                pending.clear()
                connection.execute(update(item).where(item.c.id == key).values(quantity=values["quantity"]))
            else:
                pending.append(values)
        if pending:
            connection.execute(insert(item), pending)

    def read_history(self, session: Session, key: int) -> int:
        """Read the activities of the row; it offers no index for that."""
        activity = versioning_manager.activity_cls
        wanted = select(activity).where(
            activity.table_name == ITEM,
            (activity.old_data["id"] == cast(key, JSONB)) | (activity.changed_data["id"] == cast(key, JSONB)),
        )
        return len(session.scalars(wanted.order_by(activity.id)).all())


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    # The manager wants the base before the models: they share one here.
    models = define_models(attributes={"__versioned__": {}}, prepare=versioning_manager.init)
    return PostgreSQLAuditPeer(models, tuned=tuned)
