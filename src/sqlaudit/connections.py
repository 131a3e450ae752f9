"""Who writes on a raw connection: told to the triggers of the database."""

import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, overload

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sqlaudit.capture.connections import is_missing_table
from sqlaudit.capture.listeners import attend_engine
from sqlaudit.capture.publishing import PUBLISHED, publish, withdraw
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
    within the block is told. What isn't given comes from the context of the
    task, as `audit_context` has it.

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
    except BaseException:
        await connection.run_sync(writer.leave, has_failed=True)
        raise
    await connection.run_sync(writer.leave)


@contextmanager
def _told(connection: Connection, context: AuditContext) -> Iterator[Connection]:
    writer = _Writer(connection, context)
    try:
        yield connection
    except BaseException:
        writer.leave(connection, has_failed=True)
        raise
    writer.leave(connection)


class _Writer:
    """Who writes on a connection, told to each of its transactions until the writer leaves."""

    def __init__(self, connection: Connection, context: AuditContext) -> None:
        self._context = context
        self._is_there = True
        attend_engine(connection)
        self._tell(connection)
        event.listen(connection, "before_execute", self._before_execute)

    def leave(self, connection: Connection, *, has_failed: bool = False) -> None:
        self._is_there = False
        event.remove(connection, "before_execute", self._before_execute)
        # In a transaction that has failed, nothing can be said, and nothing needs to be.
        with suppress(*([DBAPIError] if has_failed else [])):
            withdraw(connection)

    def _before_execute(self, connection: Connection, *_: Any) -> None:
        running = connection.get_transaction()
        if running is None or self._transaction() is not running:
            self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        self._transaction = weakref.ref(connection.get_transaction() or connection.begin())
        context = self._context.under(get_audit_context())
        try:
            publish(connection, new_transaction_id(), context, lambda: self._is_there)
        except DBAPIError as error:
            if not is_missing_table(error, PUBLISHED):
                raise
            raise CaptureError(
                "Who writes can't be said on this connection: no triggers are in its database; call "
                "create_audit_tables(engine) once, or migrate it."
            ) from error
