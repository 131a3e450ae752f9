"""The only writer of the trail: one INSERT for the changes of a flush, with the actor of that moment."""

import datetime as dt
import os
import time
import uuid
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import AdaptedConnection, Connection, Table, bindparam, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.capture.rows import RowChange
from sqlaudit.config import SQLAuditConfig, UserIdCallback
from sqlaudit.context import AuditContext, context_of, get_audit_context
from sqlaudit.exceptions import ActorCallbackError, ActorRequiredError, CaptureError, TrailMissingError
from sqlaudit.tables import UTCDateTime
from sqlaudit.types import UserIdType

__all__ = ["record", "require_actor", "transaction_of"]


_TRANSACTION_KEY: Final = "sqlaudit.transaction"


@dataclass(frozen=True, slots=True)
class AuditTransaction:
    """What is known of a session's root transaction from its first statement on."""

    root: weakref.ref[SessionTransaction]
    id: uuid.UUID
    began_with: AuditContext


def transaction_of(session: Session) -> AuditTransaction:
    """Return the audit transaction of *session*'s root transaction: one, across flushes and savepoints."""
    root = session.get_transaction()
    known: AuditTransaction | None = session.info.get(_TRANSACTION_KEY)
    if known is None or root is None or known.root() is not root:
        if root is None:
            raise CaptureError("The session is in no transaction, so there is nothing that a change could be part of.")
        known = AuditTransaction(weakref.ref(root), _uuid7(), get_audit_context())
        session.info[_TRANSACTION_KEY] = known
    return known


def record(
    session: Session,
    connection: Connection,
    batches: Iterable[Sequence[RowChange]],
    config: SQLAuditConfig,
    context: AuditContext | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """
    Write changes, in their order, on the connection that made them: one INSERT per batch.

    *context* says who acts; it is asked for if not given. *options* are the
    execution options that say where the tables of the changes are.

    Raises:
        ActorRequiredError: nobody is known to have made them, and the configuration requires somebody.
        ActorCallbackError: the callback that should know failed.
        TrailMissingError: the trail's table isn't in the database.
    """
    for changes in batches:
        if not changes:
            continue
        if context is None:
            context = acting_context(session, connection, config)
        _write(connection, transaction_of(session).id, context, changes, config, options)


def _write(
    connection: Connection,
    transaction_id: uuid.UUID,
    context: AuditContext,
    changes: Sequence[RowChange],
    config: SQLAuditConfig,
    options: Mapping[str, Any],
) -> None:
    user_ids = [context.user_id if context.user_id is not None else change.user_id for change in changes]
    if config.require_user and None in user_ids:
        raise ActorRequiredError(
            {change.resource_type for change, user_id in zip(changes, user_ids, strict=True) if user_id is None}
        )
    shared: dict[str, Any] = {
        "transaction_id": transaction_id,
        "impersonated_by": None if context.impersonated_by is None else str(context.impersonated_by),
        "reason": context.reason,
        "context": dict(context.facts) or None,
    }
    insert = config.trail.insert().values(recorded_at=_StatementTime(config.trail))
    if connection.dialect.name == "sqlite":
        # SQLite's own clock knows milliseconds at best.
        shared["sqlaudit_now"] = dt.datetime.now(dt.UTC)
    rows = [
        {
            **shared,
            "operation": change.operation.value,
            "resource_type": change.resource_type,
            "resource_id": change.resource_id,
            "changed_by": None if user_id is None else str(user_id),
            "old_values": change.old_values,
            "new_values": change.new_values,
        }
        for change, user_id in zip(changes, user_ids, strict=True)
    ]
    try:
        connection.execute(insert, rows, execution_options=options)
    except DBAPIError as error:
        if _is_missing_table(error, config.trail.name):
            raise TrailMissingError(config.trail.fullname) from error
        raise


def require_actor(
    session: Session, connection: Connection, config: SQLAuditConfig, resource_types: Collection[str]
) -> AuditContext:
    """
    Return who acts at this moment, for changes that are known to come.

    Raises:
        ActorRequiredError: no context and no callback names a user.
        ActorCallbackError: the callback that should know failed.
    """
    context = acting_context(session, connection, config)
    if context.user_id is None:
        raise ActorRequiredError(resource_types)
    return context


def acting_context(session: Session, connection: Connection, config: SQLAuditConfig) -> AuditContext:
    """
    Return who acts at this moment, and why; the callback is asked when nobody else knows.

    Raises:
        ActorCallbackError: the callback failed, gave no id, or is asynchronous on a synchronous connection.
    """
    context = context_of(session, transaction_of(session).began_with)
    if context.user_id is not None or config.get_user_id_callback is None:
        return context
    user_id = _ask(config.get_user_id_callback, connection)
    return AuditContext(user_id=user_id).under(context)


def _ask(callback: UserIdCallback, connection: Connection) -> UserIdType | None:
    dbapi_connection = connection.connection.dbapi_connection
    can_await = isinstance(dbapi_connection, AdaptedConnection)
    if iscoroutinefunction(callback) and not can_await:
        raise _async_callback()
    try:
        answer: Any = callback()
        if isawaitable(answer):
            if not isinstance(dbapi_connection, AdaptedConnection):
                if iscoroutine(answer):
                    answer.close()
                raise _async_callback()
            # The documented way to await within an event handler; the driver's connection isn't used.
            awaited = answer
            answer = dbapi_connection.run_async(lambda _: awaited)
        return AuditContext(user_id=answer).user_id
    except ActorCallbackError:
        raise
    except Exception as error:
        raise ActorCallbackError(
            f"get_user_id_callback failed with {type(error).__name__}: {error}; the change was not made, because "
            f"nobody could be named. Let it return None for nobody."
        ) from error


def _async_callback() -> ActorCallbackError:
    return ActorCallbackError(
        "get_user_id_callback is asynchronous, and this is a plain Session, which can't await it; use an AsyncSession, "
        "a synchronous callback, or audit_context(user_id=...)."
    )


class _StatementTime(FunctionElement[dt.datetime]):
    """
    The clock when the statement runs, not when its transaction began: the database's.

    SQLite has none but the processes'. They may differ, and the trail doesn't run
    backwards: a change is never told to be older than the one before it.
    """

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, trail: Table) -> None:
        last = select(trail.c.recorded_at).order_by(trail.c.id.desc()).limit(1).scalar_subquery()
        super().__init__(bindparam("sqlaudit_now", type_=UTCDateTime(), required=False), last)


@compiles(_StatementTime, "postgresql")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "clock_timestamp()"


@compiles(_StatementTime, "mysql", "mariadb")
def _(element: Any, compiler: Any, **_: Any) -> str:
    return "UTC_TIMESTAMP(6)"


@compiles(_StatementTime, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    now, last = (compiler.process(each, **kw) for each in element.clauses)
    return f"max({now}, coalesce({last}, ''))"


def _is_missing_table(error: DBAPIError, name: str) -> bool:
    # PostgreSQL's SQLSTATE, MySQL's error number, SQLite's words.
    original: Any = error.orig
    return (
        getattr(original, "sqlstate", None) == "42P01"
        or getattr(original, "args", ())[:1] == (1146,)
        or (str(original).startswith("no such table:") and str(original).endswith(name))
    )


def _uuid7() -> uuid.UUID:
    """Return a UUID that grows with time (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    return uuid.UUID(
        int=(milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (random >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | (random & 0x3FFF_FFFF_FFFF_FFFF)
    )
