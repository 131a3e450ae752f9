"""What the harness asks of a contestant."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, func, insert, select, table
from sqlalchemy.orm import Session, configure_mappers

from benchmarks.models import Models, values_of
from benchmarks.workloads import HISTORY_KEY, HISTORY_LENGTH, Batch

__all__ = ["Contestant", "Entry", "history_entries", "in_chunks"]

Item = TypeVar("Item")

Entry = tuple[str, int, dict[str, Any]]
"""An operation, the key of the row, and the values that it has then."""


class Contestant:
    """Plain SQLAlchemy; and what the others do differently."""

    trail_tables: tuple[str, ...] = ()
    """Where it keeps what it records; the first one has a row per change."""

    def __init__(self, models: Models) -> None:
        configure_mappers()
        self.models = models

    session_class: type[Session] = Session

    def create_tables(self, connection: Connection) -> None:
        """Create the tables of the models, and its own."""
        self.models.base.metadata.create_all(connection)
        connection.execute(insert(self.models.category), [{"id": 1}])

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Say who acts, and why, if it can be told."""
        yield

    def expect(self, batches: list[Batch]) -> None:
        """Learn what the flushes of the coming run would leave; of use to the floor alone."""

    def count_changes(self, connection: Connection) -> int:
        """Return how many changes are recorded, by SQL."""
        if not self.trail_tables:
            return 0
        schema, _, name = self.trail_tables[0].rpartition(".")
        trail = table(name, schema=schema or None)
        return connection.scalar(select(func.count()).select_from(trail)) or 0

    def fill_history(self, connection: Connection, size: int) -> None:
        """Fill the trail with the *size* changes that W5 reads among."""
        raise NotImplementedError

    def read_history(self, session: Session, key: int) -> int:
        """Read the history of a row as its documentation says; return the number of entries."""
        raise NotImplementedError


def history_entries(size: int) -> Iterator[Entry]:
    """Yield *size* changes: 1,000 of one row, evenly spread; the others insert rows."""
    every = max(size // HISTORY_LENGTH, 1)
    turn = 0
    for number in range(size):
        if number % every == 0:
            values = {"id": HISTORY_KEY, **values_of(HISTORY_KEY), "quantity": turn}
            yield ("update" if turn else "insert", HISTORY_KEY, values)
            turn += 1
        else:
            key = 100 + number
            yield "insert", key, {"id": key, **values_of(key)}


def in_chunks(items: Iterable[Item], size: int = 10_000) -> Iterator[list[Item]]:
    """Yield *items* in lists of at most *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
