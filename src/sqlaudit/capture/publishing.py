"""What the triggers of a database must know of their writer: told to the transaction in which it writes."""

import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from sqlaudit.capture.connections import OWN, is_missing_table, refuse_autocommit
from sqlaudit.context import AuditContext

__all__ = [
    "PUBLISHED",
    "doubt",
    "end_publication",
    "end_savepoint",
    "forget",
    "is_told",
    "leave_to_session",
    "publish",
    "retention",
    "withdraw",
    "withdraw_from_driver",
    "withdraw_stale",
]


@dataclass(frozen=True, slots=True)
class _Publication:
    said: Mapping[str, Any]
    """What is told of the writer."""
    by_session: Collection[str]
    document: str | None
    """Both, as it stands in the database; empty if nothing does, None if nobody knows what does."""
    is_current: Callable[[], bool]
    """Says whether what is told of the writer is still so."""
    in_savepoint: bool


_published: WeakKeyDictionary[Connection, _Publication] = WeakKeyDictionary()
"""What is known to stand in the database, for the transaction of a connection."""

PUBLISHED: Final = "sqlaudit_published"
"""The table of SQLite that holds it."""

_MYSQL_WITHDRAWAL: Final = "SET @sqlaudit_published = NULL"

_PUBLISHES: Final[dict[str, TextClause]] = {
    "postgresql": text("SELECT set_config('sqlaudit.published', :document, true)"),
    "sqlite": text(
        f"INSERT INTO {PUBLISHED} (one, document) VALUES (1, :document) "
        "ON CONFLICT (one) DO UPDATE SET document = excluded.document"
    ),
    "mysql": text("SET @sqlaudit_published = :document"),
}
_WITHDRAWS: Final[dict[str, TextClause]] = {
    "postgresql": text("SELECT set_config('sqlaudit.published', '', true)"),
    "sqlite": text(f"DELETE FROM {PUBLISHED}"),
    "mysql": text(_MYSQL_WITHDRAWAL),
}

_INFO_KEY: Final = "sqlaudit.published"


def publish(
    connection: Connection,
    transaction_id: uuid.UUID,
    context: AuditContext,
    is_current: Callable[[], bool],
    by_session: Collection[str] = (),
) -> None:
    """
    Tell who writes from now on in the transaction of *connection*; once, unless it is somebody else.

    *is_current* says whether it still holds; *by_session* are the labels whose
    rows the writer records itself.

    Raises:
        CaptureError: the connection is in AUTOCOMMIT mode, where there is no transaction to tell.
    """
    said = {
        "transaction": str(transaction_id),
        "user": None if context.user_id is None else str(context.user_id),
        "impersonator": None if context.impersonated_by is None else str(context.impersonated_by),
        "reason": context.reason,
        "facts": dict(context.facts) or None,
    }
    _tell(connection, said, by_session, is_current)


def _tell(
    connection: Connection, said: Mapping[str, Any], by_session: Collection[str], is_current: Callable[[], bool]
) -> None:
    document = _encode({**said, "by_session": [*by_session]} if by_session else said)
    known = _published.get(connection)
    if known is not None and known.document == document:
        return
    refuse_autocommit(connection)
    if _dialect(connection) == "mysql":
        # First: who is cancelled meanwhile doesn't know whether it stands there.
        connection.info[_INFO_KEY] = True
    connection.execute(_PUBLISHES[_dialect(connection)], {"document": document}, execution_options=OWN)
    in_savepoint = connection.in_nested_transaction()
    _published[connection] = _Publication(said, by_session, document, is_current, in_savepoint)


_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def leave_to_session(connection: Connection, by_session: Collection[str]) -> None:
    """Tell which labels the writer itself records from now on, if it is known who writes."""
    known = _published.get(connection) if _published else None
    if known is not None and known.document and known.by_session != by_session:
        _tell(connection, known.said, by_session, known.is_current)


def is_told(connection: Connection) -> bool:
    """Return whether the database may believe that somebody writes in the transaction of *connection*."""
    known = _published.get(connection) if _published else None
    return known is not None and known.document != ""


@contextmanager
def retention(connection: Connection) -> Iterator[None]:
    """
    Let the guard of the trail pass deletions, in a transaction of *connection*.

    Who was told to write there isn't any more: it has to be told again.
    """
    is_over = False
    try:
        _tell(connection, {"retention": True}, (), lambda: not is_over)
    except DBAPIError as error:
        # On SQLite it comes with the guard.
        if not is_missing_table(error, PUBLISHED):
            raise
    try:
        yield
    except BaseException:
        is_over = True
        # In a transaction that has failed, nothing can be said; what is rolled back to a savepoint is in doubt.
        with suppress(DBAPIError):
            withdraw(connection)
        raise
    is_over = True
    withdraw(connection)


def withdraw(connection: Connection) -> None:
    """Tell that nobody is known to write, if somebody was."""
    known = _published.get(connection)
    if known is None or known.document == "":
        return
    if connection.in_transaction():
        connection.execute(_WITHDRAWS[_dialect(connection)], execution_options=OWN)
    else:
        # To execute it would begin one.
        withdraw_from_driver(connection.connection.dbapi_connection, connection.info)
    if connection.in_nested_transaction():
        # It may come back, when the savepoint is rolled back.
        _published[connection] = replace(known, document="")
    else:
        del _published[connection]


def withdraw_stale(connection: Connection) -> None:
    """Withdraw what the database would still believe, and isn't so any more, or may not be."""
    known = _published.get(connection) if _published else None
    if known is not None and (known.document is None or not known.is_current()):
        withdraw(connection)


def end_publication(connection: Connection) -> None:
    """Let nothing of it outlive the transaction."""
    if _dialect(connection) == "sqlite":
        # A row of a table would be committed with it.
        withdraw(connection)
    forget(connection)


def end_savepoint(connection: Connection) -> None:
    """Let nothing that was told in a savepoint outlive it, as it is released."""
    known = _published.get(connection) if _published else None
    # SQLite's driver, as it comes, begins no transaction before a savepoint: released, it is committed.
    if known is not None and known.in_savepoint and _dialect(connection) == "sqlite":
        withdraw(connection)


def doubt(connection: Connection) -> None:
    """Know that nobody knows what the database was told, with a savepoint that is rolled back."""
    known = _published.get(connection) if _published else None
    # It is what was told before the savepoint; MariaDB's variable is of no transaction, and stays.
    if known is not None and _dialect(connection) != "mysql":
        _published[connection] = replace(known, document=None)


def forget(connection: Connection) -> None:
    """Know that the database has forgotten, with the transaction in which it was told."""
    # MariaDB hasn't: its variable is of the connection, and withdrawn when somebody else writes there.
    if _dialect(connection) != "mysql":
        _published.pop(connection, None)


def withdraw_from_driver(dbapi_connection: Any, info: dict[str, Any]) -> None:
    """Withdraw it on MariaDB or MySQL, where no `Connection` is left: the pool takes the connection back."""
    if info.pop(_INFO_KEY, False):
        cursor = dbapi_connection.cursor()
        cursor.execute(_MYSQL_WITHDRAWAL)
        cursor.close()


def _dialect(connection: Connection) -> str:
    name = connection.dialect.name
    return "mysql" if name == "mariadb" else name
