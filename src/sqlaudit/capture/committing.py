"""Which transactions write to the trail: noted while somebody wants to hear of it, delivered when they are over."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Table, event
from sqlalchemy.orm import Session

from sqlaudit._delivery import Written, deliver, has_subscribers
from sqlaudit.config import SQLAuditConfig

__all__ = [
    "add_listener",
    "deliver_left",
    "deliver_written",
    "forget_left",
    "mark_committed",
    "note",
    "remove_listener",
]


_NOTES_KEY: Final = "sqlaudit.written"
_LEFT_KEY: Final = "sqlaudit.left"
_LISTENERS_KEY: Final = "sqlaudit.listeners"

_Listener: TypeAlias = Callable[[Connection, Written], None]


@dataclass(slots=True)
class _Notes:
    """What is noted of a session's root transaction."""

    written: dict[tuple[Connection, Table, str], Written] = field(default_factory=dict)
    is_committed: bool = False


def note(
    session: Session,
    connection: Connection,
    transaction_id: uuid.UUID,
    config: SQLAuditConfig,
    options: Mapping[str, Any],
) -> None:
    """Notice that a transaction is about to write, if anybody wants to know; *options* are those of the statement."""
    listeners: tuple[_Listener, ...] = session.info.get(_LISTENERS_KEY, ())
    if not listeners and not has_subscribers():
        return
    places = {**connection.get_execution_options(), **options}.get("schema_translate_map")
    written = Written(connection.engine, transaction_id, config, places)
    for listener in listeners:
        listener(connection, written)
    if has_subscribers():
        notes = session.info.setdefault(_NOTES_KEY, _Notes())
        notes.written.setdefault((connection, config.trail, repr(places)), written)


def add_listener(session: Session, listener: _Listener) -> None:
    """Call *listener* before *session* writes to the trail, or lets triggers do so."""
    session.info[_LISTENERS_KEY] = (*session.info.get(_LISTENERS_KEY, ()), listener)


def remove_listener(session: Session, listener: _Listener) -> None:
    """Call it no more. Doing it twice is doing it once."""
    session.info[_LISTENERS_KEY] = tuple(each for each in session.info.get(_LISTENERS_KEY, ()) if each != listener)


def mark_committed(session: Session) -> None:
    """Remember that the root transaction was committed."""
    if _NOTES_KEY in session.info:
        session.info[_NOTES_KEY].is_committed = True


def deliver_written(session: Session) -> None:
    """
    Deliver what the root transaction of *session*, now over, has committed.

    Of several databases, some may have committed before another one failed: reading tells.
    """
    notes: _Notes | None = session.info.pop(_NOTES_KEY, None)
    if notes is None or not (notes.is_committed or len(notes.written) > 1):
        return
    for (connection, *_), written in notes.written.items():
        if connection.in_transaction():
            if not connection.invalidated:
                _leave(connection, written)
        else:
            deliver(written)


def _leave(connection: Connection, written: Written) -> None:
    """Let *written* wait for the end of a transaction that isn't the session's, on a connection that was lent to it."""
    # For good: of two listeners that are meant for one call, a connection would call the first alone.
    if not event.contains(connection, "begin", _on_begin):
        event.listen(connection, "begin", _on_begin)
    connection.info.setdefault(_LEFT_KEY, []).append(written)


def _on_begin(connection: Connection) -> None:
    """Runs when such a connection begins another transaction: the one before is over."""
    deliver_left(connection.info)


def deliver_left(info: dict[Any, Any]) -> None:
    """Deliver what a connection has in its *info*: its transaction is over, and reading tells how it ended."""
    for written in info.pop(_LEFT_KEY, ()):
        deliver(written)


def forget_left(connection: Connection) -> None:
    """Forget what is about to be rolled back."""
    # The connection may have been lost: asked for its info, it would refuse, or connect anew.
    if not connection.invalidated:
        connection.info.pop(_LEFT_KEY, None)
