"""A statement on its way: what is known of it before it is sent, and what will be told when it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, FromClause
from sqlalchemy.engine import CursorResult
from sqlalchemy.sql.dml import UpdateBase

from sqlaudit.capture.cascades import CascadedRows
from sqlaudit.capture.rows import ParameterSets, RowChange
from sqlaudit.exceptions import CaptureError

__all__ = ["Batches", "Key", "Pending", "Sending", "changed_unread", "other_rows"]


Key: TypeAlias = tuple[Any, ...]
Batches: TypeAlias = Iterator[list[RowChange]]


@dataclass(frozen=True, slots=True)
class Sending:
    """A statement that is about to be sent."""

    connection: Connection
    statement: UpdateBase
    state: Any
    """SQLAlchemy's `CompileState`: knows what the ORM adds, criteria of subclasses and loader options."""
    returned: Sequence[Any]
    """The columns of an explicit RETURNING."""
    target: FromClause
    """What it names to be written: the table, or an alias of it."""
    parameters: ParameterSets
    counts_late: bool
    """It returns rows, for the user or the ORM: SQLite counts those that it changed while they are fetched."""
    options: Mapping[str, Any]
    """The execution options that say where its table is, for what is read of it."""

    @property
    def is_many(self) -> bool:
        """It is sent once for each of several parameter sets."""
        return len(self.parameters) > 1


@dataclass(frozen=True, slots=True)
class Pending:
    """A statement whose changes are known when it has been sent."""

    statement: UpdateBase
    """What is sent: the user's, but for a RETURNING."""
    own_changes: Callable[[CursorResult[Any]], Batches]
    cascaded: CascadedRows | None = None
    """What the database will do to other rows."""
    is_certain: bool = False
    """It is known to change rows that don't name who changes them."""


def other_rows(sending: Sending) -> CaptureError:
    """Return the error that a statement has done something to other rows than was foreseen."""
    return CaptureError(
        f"The statement didn't change the rows of {sending.target} that its criterion found before: it isn't the same "
        f"at each reading, or a trigger of the database kept rows; roll back, and name the rows by their keys."
    )


def changed_unread(count: int, sending: Sending) -> CaptureError:
    """Return the error that a statement has changed rows that nobody could read before."""
    return CaptureError(
        f"{count} rows of {sending.target} were committed by another transaction while the statement ran, and what "
        f"they held before isn't known; roll back and run the transaction again."
    )
