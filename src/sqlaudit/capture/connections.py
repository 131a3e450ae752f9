"""Which connections a change can be recorded on, and what they raise."""

import re
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import CaptureError

__all__ = [
    "OWN",
    "OWN_STATEMENT",
    "as_sqlalchemy_raises",
    "is_autocommit",
    "is_missing_table",
    "missing_columns",
    "refuse_autocommit",
]


OWN_STATEMENT: Final = "_sqlaudit_own"
"""The execution option of what the library writes itself."""

OWN: Final = {"sqlaudit": False, OWN_STATEMENT: True}
"""It leaves no trail, and nobody has to be told to it."""


def is_autocommit(connection: Connection) -> bool:
    """Return whether each statement of a connection is a transaction of its own."""
    level = connection.get_execution_options().get(
        "isolation_level", getattr(connection.dialect, "_on_connect_isolation_level", None)
    )
    return bool(level == "AUTOCOMMIT")


def refuse_autocommit(connection: Connection) -> None:
    """
    Refuse a connection on which a change and its trail wouldn't be committed together.

    Raises:
        CaptureError: its isolation level is AUTOCOMMIT.
    """
    if is_autocommit(connection):
        raise CaptureError(
            "The connection is in AUTOCOMMIT mode, where a change and its trail can't be committed together; use "
            "another isolation level for sessions that write tracked models."
        )


def as_sqlalchemy_raises(connection: Connection, error: Exception) -> Exception:
    """
    Return what SQLAlchemy would raise for *error*, if it came from a statement and not from a server-side cursor.

    asyncpg waits for locks when rows are fetched, and SQLAlchemy hands on as they are the errors of that.
    """
    adapted: Any = connection.connection.dbapi_connection
    dbapi: Any = connection.dialect.dbapi
    try:
        adapted._handle_exception(error)  # noqa: SLF001 (what the adapter itself does with the errors of statements)
    except dbapi.Error as known:
        translated: Exception = DBAPIError.instance(None, None, known, dbapi.Error, dialect=connection.dialect)
        return translated
    except Exception:  # noqa: BLE001 (another driver, or no error of the database's)
        return error
    return error


def is_missing_table(error: DBAPIError, name: str) -> bool:
    """Return whether a statement failed because a table isn't there."""
    # PostgreSQL's SQLSTATE, MySQL's error number, SQLite's words.
    original: Any = error.orig
    return (
        getattr(original, "sqlstate", None) == "42P01"
        or getattr(original, "args", ())[:1] == (1146,)
        or (str(original).startswith("no such table:") and str(original).endswith(name))
    )


def missing_columns(error: DBAPIError, table: Table) -> list[str]:
    """Return the columns of a table for want of which a statement failed; databases tell of the first one."""
    original: Any = error.orig
    told = str(original).partition("\n")[0]
    if not (
        getattr(original, "sqlstate", None) == "42703"
        or getattr(original, "args", ())[:1] == (1054,)
        or "has no column named" in told
    ):
        return []
    words = {*re.findall(r"\w+", told)}
    return [column.name for column in table.columns if column.name in words]
