"""Who writes on a raw connection: told to the triggers of the database."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, overload
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sqlaudit.capture.connections import is_missing_table
from sqlaudit.capture.listeners import attend_engine, tells_itself
from sqlaudit.capture.publishing import PUBLISHED, publish, withdraw_stale
from sqlaudit.context import AuditContext, get_audit_context
from sqlaudit.exceptions import CaptureError
from sqlaudit.recorder import new_transaction_id
from sqlaudit.types import UserIdType

__all__ = ["audited_connection"]


@overload
def audited_connection(
    connection: AsyncConnection,
    *,
    user_id: UserIdType | None = None,
    reason: str | None = None,
    impersonated_by: UserIdType | None = None,
    **facts: Any,
) -> AbstractAsyncContextManager[AsyncConnection]: ...
@overload
def audited_connection(
    connection: Connection,
    *,
    user_id: UserIdType | None = None,
    reason: str | None = None,
    impersonated_by: UserIdType | None = None,
    **facts: Any,
) -> AbstractContextManager[Connection]: ...
def audited_connection(
    connection: AsyncConnection | Connection,
    *,
    user_id: UserIdType | None = None,
    reason: str | None = None,
    impersonated_by: UserIdType | None = None,
    **facts: Any,
) -> AbstractAsyncContextManager[AsyncConnection] | AbstractContextManager[Connection]:
    """
    Say who writes on a raw connection: for tables that triggers capture.

    Sessions do it by themselves. The block begins a transaction, if there is
    none, and leaves it to you to commit; every transaction of the connection
    within the block is told, and a block within it says for its time who
    writes. What isn't given comes from the context of the task, as
    `audit_context` has it. A session on the connection says itself who writes.

        async with engine.connect() as connection:
            async with audited_connection(connection, user_id=42, reason="import"):
                await connection.execute(text("UPDATE customer SET …"))
                await connection.commit()

    Args:
        connection: an `AsyncConnection` (``async with``) or a `Connection` (``with``).
        user_id: who acts.
        reason: why, in words.
        impersonated_by: who acts as *user_id*.
        facts: anything else worth keeping, JSON values, 8 KiB in all.

    Raises:
        ContextError: a value is of another type, or the facts are no JSON or too large.
        TypeError: *connection* is something else.
        CaptureError: on entering, if the connection is in AUTOCOMMIT mode, or its database (SQLite) has no triggers.
    """
    context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)
    if isinstance(connection, AsyncConnection):
        return _told_async(connection, context)
    if isinstance(connection, Connection):
        return _told(connection, context)
    raise TypeError(
        f"connection is a {type(connection).__name__}; expected an AsyncConnection or a Connection of SQLAlchemy's. A "
        f"session needs none: use audit_context()."
    )


@asynccontextmanager
async def _told_async(connection: AsyncConnection, context: AuditContext) -> AsyncIterator[AsyncConnection]:
    writer = await connection.run_sync(_Writer, context)
    try:
        yield connection
    finally:
        await connection.run_sync(writer.leave)


@contextmanager
def _told(connection: Connection, context: AuditContext) -> Iterator[Connection]:
    writer = _Writer(connection, context)
    try:
        yield connection
    finally:
        writer.leave(connection)


class _Writer:
    """Who writes on a connection, told to each of its transactions until the writer leaves."""

    def __init__(self, connection: Connection, context: AuditContext) -> None:
        self._context = context
        self._is_there = True
        attend_engine(connection)
        if not connection.in_transaction():
            connection.begin()
        self._tell(connection)
        _writers.setdefault(connection, []).append(self)
        # Of every statement, exec_driver_sql's too: a commit, a savepoint, another writer may have ended what was told.
        event.listen(connection, "before_cursor_execute", self._before_cursor_execute)

    def leave(self, connection: Connection) -> None:
        self._is_there = False
        _writers[connection].remove(self)
        event.remove(connection, "before_cursor_execute", self._before_cursor_execute)
        if not connection.closed and not connection.invalidated:
            # In a transaction that has failed, nothing can be said: it is withdrawn before the next statement.
            with suppress(DBAPIError):
                withdraw_stale(connection)

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any
    ) -> None:
        if self is _writers[connection][-1] and not tells_itself(context):
            self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        transaction = connection.get_transaction()
        if transaction is None:
            # It is being begun, by a listener of the application's.
            return
        transaction_id = _transaction_ids.setdefault(transaction, new_transaction_id())
        context = self._context.under(get_audit_context())
        try:
            publish(connection, transaction_id, context, lambda: self._is_there)
        except DBAPIError as error:
            if not is_missing_table(error, PUBLISHED):
                raise
            raise CaptureError(
                "Who writes can't be said on this connection: no triggers are in its database; call "
                "create_audit_tables(engine) once, or migrate it."
            ) from error


_writers: WeakKeyDictionary[Connection, list[_Writer]] = WeakKeyDictionary()
"""Of blocks within blocks, the innermost writes."""

_transaction_ids: WeakKeyDictionary[RootTransaction, uuid.UUID] = WeakKeyDictionary()
"""One for all that is told to a transaction."""
