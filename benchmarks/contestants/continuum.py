"""
SQLAlchemy-Continuum: https://sqlalchemy-continuum.github.io/.

As in its README: ``make_versioned(user_cls=None)``. At its fastest: the "subquery" strategy, which
its documentation recommends for the speed of writing; on PostgreSQL with ``native_versioning``, its triggers.
"""

from typing import Any

from sqlalchemy import Connection, insert, text
from sqlalchemy.orm import Session
from sqlalchemy_continuum import make_versioned, transaction_class, version_class

from benchmarks.contestants.base import Contestant, history_entries, in_chunks
from benchmarks.models import ITEM, define_models


class Continuum(Contestant):
    """A table of versions per model; SQLAlchemy-History, a fork of it, is the same to us."""

    trail_tables = (f"{ITEM}_version", "transaction")

    def __init__(self, models: Any, version: Any, transaction: Any, *, needs_hstore: bool = False) -> None:
        super().__init__(models)
        self._version_of = version
        self._transaction_of = transaction
        self._needs_hstore = needs_hstore

    def create_tables(self, connection: Connection) -> None:
        """Create the tables of versions, too; its trigger uses hstore."""
        if self._needs_hstore:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS hstore"))
        super().create_tables(connection)

    def fill_history(self, connection: Connection, size: int) -> None:
        """Write the versions, a transaction each."""
        version = self._version_of(self.models.item).__table__
        transaction = self._transaction_of(self.models.item).__table__
        for chunk in in_chunks(enumerate(history_entries(size), 1)):
            connection.execute(insert(transaction), [{"id": number} for number, _ in chunk])
            connection.execute(
                insert(version),
                [
                    {**values, "transaction_id": number, "operation_type": 0 if operation == "insert" else 1}
                    for number, (operation, _, values) in chunk
                ],
            )
        item = self.models.item.__table__
        *_, last = (entry for entry in history_entries(size) if entry[0] == "update")
        connection.execute(insert(item), [last[2]])

    def read_history(self, session: Session, key: int) -> int:
        """Read ``item.versions``: whole states, not what changed in them."""
        versions = session.get_one(self.models.item, key).versions
        found = versions.all() if hasattr(versions, "all") else session.scalars(versions.select()).all()
        return len(found)


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    native = tuned and kind == "postgresql"
    options: dict[str, Any] = {"strategy": "subquery", "native_versioning": native} if tuned else {}
    make_versioned(user_cls=None, options=options)
    models = define_models(attributes={"__versioned__": {}})
    return Continuum(models, version_class, transaction_class, needs_hstore=native)
