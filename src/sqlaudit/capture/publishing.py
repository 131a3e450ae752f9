"""What the triggers of a database must know of their writer: told to the transaction in which it writes."""

import json
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from sqlaudit.capture.connections import refuse_autocommit
from sqlaudit.context import AuditContext

__all__ = [
    "PUBLISHED",
    "doubt",
    "end_publication",
    "end_savepoint",
    "forget",
    "publish",
    "retention",
    "withdraw",
    "withdraw_from_driver",
    "withdraw_stale",
]


@dataclass(frozen=True, slots=True)
class _Publication:
    document: str
    is_current: Callable[[], bool]
    """Says whether what the document says of the writer is still so."""
    in_savepoint: bool


_published: WeakKeyDictionary[Connection, _Publication] = WeakKeyDictionary()
"""What is known to stand in the database, for the transaction of a connection."""

_OPTIONS: Final = {"sqlaudit": False}
"""This is no write of the application's."""

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
    document = _document(transaction_id, context, by_session)
    known = _published.get(connection)
    if known is not None and known.document == document:
        return
    refuse_autocommit(connection)
    connection.execute(_PUBLISHES[_dialect(connection)], {"document": document}, execution_options=_OPTIONS)
    _published[connection] = _Publication(document, is_current, connection.in_nested_transaction())
    if _dialect(connection) == "mysql":
        connection.info[_INFO_KEY] = True


def _document(transaction_id: uuid.UUID, context: AuditContext, by_session: Collection[str]) -> str:
    published: dict[str, Any] = {
        "transaction": str(transaction_id),
        "user": None if context.user_id is None else str(context.user_id),
        "impersonator": None if context.impersonated_by is None else str(context.impersonated_by),
        "reason": context.reason,
        "facts": dict(context.facts) or None,
    }
    if by_session:
        published["by_session"] = list(by_session)
    return json.dumps(published, separators=(",", ":"), ensure_ascii=False)


@contextmanager
def retention(connection: Connection) -> Iterator[None]:
    """Let the guard of the trail pass deletions, in a transaction of *connection*."""
    refuse_autocommit(connection)
    document = {"document": '{"retention":true}'}
    connection.execute(_PUBLISHES[_dialect(connection)], document, execution_options=_OPTIONS)
    try:
        yield
    except BaseException:
        # In a transaction that has failed, nothing can be said; MariaDB's variable isn't of the transaction.
        with suppress(DBAPIError):
            connection.execute(_WITHDRAWS[_dialect(connection)], execution_options=_OPTIONS)
        raise
    connection.execute(_WITHDRAWS[_dialect(connection)], execution_options=_OPTIONS)


def withdraw(connection: Connection) -> None:
    """Tell that nobody is known to write, if somebody was."""
    if _published.pop(connection, None) is not None:
        connection.execute(_WITHDRAWS[_dialect(connection)], execution_options=_OPTIONS)


def withdraw_stale(connection: Connection) -> None:
    """Withdraw what the database would still believe, and isn't so any more."""
    known = _published.get(connection) if _published else None
    # The other databases forget by themselves.
    if known is not None and _dialect(connection) == "mysql" and not known.is_current():
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
    """Know that what the database was told may be gone, with a savepoint that is rolled back."""
    known = _published.get(connection) if _published else None
    if known is not None and _dialect(connection) == "sqlite":
        # What was told before the savepoint is still there, and has to be withdrawn.
        _published[connection] = replace(known, document="")
    else:
        forget(connection)


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
