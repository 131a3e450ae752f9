"""The only writer of the trail: one INSERT for the changes of a flush, with the actor of that moment."""

import datetime as dt
import json
import logging
import os
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    AdaptedConnection,
    ColumnElement,
    Connection,
    Insert,
    Table,
    bindparam,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from sqlaudit.capture.committing import note
from sqlaudit.capture.connections import OWN, is_missing_table, missing_columns
from sqlaudit.capture.reuse import reusable
from sqlaudit.capture.rows import RowChange
from sqlaudit.config import SQLAuditConfig, UserIdCallback
from sqlaudit.context import AuditContext, context_of, later_context
from sqlaudit.exceptions import (
    ActorCallbackError,
    ActorRequiredError,
    CaptureError,
    TrailMissingError,
    TrailOutdatedError,
)
from sqlaudit.tables import MAX_MYSQL_KEY
from sqlaudit.types import UserIdType

__all__ = ["acting_context", "new_transaction_id", "record", "require_actor", "transaction_of"]


_logger: Final = logging.getLogger("sqlaudit.recorder")

_TRANSACTION_KEY: Final = "sqlaudit.transaction"


@dataclass(frozen=True, slots=True)
class AuditTransaction:
    """What is known of a session's root transaction from its first statement on."""

    root: weakref.ref[SessionTransaction]
    id: uuid.UUID
    began_with: Callable[[], AuditContext]

    def is_running(self) -> bool:
        """Return whether it has neither been committed nor rolled back."""
        root = self.root()
        return root is not None and root.is_active


def transaction_of(session: Session) -> AuditTransaction:
    """Return the audit transaction of *session*'s root transaction: one, across flushes and savepoints."""
    root = session.get_transaction()
    known: AuditTransaction | None = session.info.get(_TRANSACTION_KEY)
    if known is None or root is None or known.root() is not root:
        if root is None:
            raise CaptureError("The session is in no transaction, so there is nothing that a change could be part of.")
        known = AuditTransaction(weakref.ref(root), new_transaction_id(), later_context())
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
        TrailOutdatedError: it lacks a column.
    """
    for changes in batches:
        if not changes:
            continue
        if context is None:
            context = acting_context(session, connection, config)
        transaction_id = transaction_of(session).id
        note(session, connection, transaction_id, config, options)
        _write(connection, transaction_id, context, changes, config, options)
        if _logger.isEnabledFor(logging.DEBUG):
            extra = {"transaction_id": str(transaction_id), "changes": len(changes)}
            _logger.debug("Recorded changes of transaction %s: %s.", transaction_id, len(changes), extra=extra)


def _write(
    connection: Connection,
    transaction_id: uuid.UUID,
    context: AuditContext,
    changes: Sequence[RowChange],
    config: SQLAuditConfig,
    options: Mapping[str, Any],
) -> None:
    actors = [context.user_id if context.user_id is not None else change.user_id for change in changes]
    if config.require_user and None in actors:
        raise ActorRequiredError(
            {change.resource_type for change, actor in zip(changes, actors, strict=True) if actor is None}
        )
    dialect = connection.dialect.name
    _refuse_keys(changes, config.trail, dialect)
    shared = {
        "transaction_id": transaction_id,
        # SQLite's own clock knows milliseconds at best.
        "now": dt.datetime.now(dt.UTC),
        "impersonated_by": None if context.impersonated_by is None else str(context.impersonated_by),
        "reason": context.reason,
        "context": dict(context.facts) or None,
    }
    rows = [
        (
            change.operation,
            change.resource_type,
            change.resource_id,
            None if actor is None else str(actor),
            _document(change.old_values, dialect),
            _document(change.new_values, dialect),
        )
        for change, actor in zip(changes, actors, strict=True)
    ]
    insert = _insert_into(config.trail, dialect)
    try:
        written = 0
        for document in _documents(rows):
            parameters = {**shared, "changes": document}
            written += connection.execute(insert, parameters, execution_options={**options, **OWN}).rowcount
    except DBAPIError as error:
        if is_missing_table(error, config.trail.name):
            raise TrailMissingError(config.trail.fullname) from error
        if lacking := missing_columns(error, config.trail):
            raise TrailOutdatedError(config.trail.fullname, lacking) from error
        raise
    if 0 <= written < len(rows):
        raise CaptureError(
            "The sql_mode of the connection isn't strict: the database may have stored other values than it was given, "
            "and nobody was told; use STRICT_TRANS_TABLES, which is the default."
        )


def _documents(rows: list[Any]) -> Iterator[str]:
    """Yield *rows* as JSON: in one document, unless it would be larger than servers take."""
    document = _encode(rows)
    try:
        size = len(document) if document.isascii() else len(document.encode())
    except UnicodeEncodeError:
        # Half of a character, which some databases keep in a document.
        document = _encode_ascii(rows)
        size = len(document)
    if size <= MAX_DOCUMENT or len(rows) == 1:
        yield document
        return
    half = len(rows) // 2
    yield from _documents(rows[:half])
    yield from _documents(rows[half:])


def _document(values: Mapping[str, Any] | None, dialect: str) -> Any:
    # MariaDB counts how deep a document is: as text within the other, a column's is as deep as it may be.
    return values if values is None or dialect not in ("mysql", "mariadb") else _encode(values)


def _refuse_keys(changes: Sequence[RowChange], trail: Table, dialect: str) -> None:
    """Refuse keys that the trail's column, or the way there, would cut off."""
    if dialect == "sqlite" and any("\0" in change.resource_id for change in changes):
        raise CaptureError("A key has a NUL character in it, at which SQLite cuts text off; name a resource_id_field.")
    if dialect not in ("mysql", "mariadb"):
        return
    for change in changes:
        if len(change.resource_id) > MAX_MYSQL_KEY:
            raise CaptureError(
                f"The key of a row of {change.resource_type} has {len(change.resource_id)} characters as text, and "
                f"{trail.fullname} holds {MAX_MYSQL_KEY} on this database; name a shorter resource_id_field."
            )


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
            f"get_user_id_callback failed with {type(error).__name__}: {str(error).rstrip('.')}; the change was not "
            f"made, because nobody could be named. Let it return None for nobody."
        ) from error


def _async_callback() -> ActorCallbackError:
    return ActorCallbackError(
        "get_user_id_callback is asynchronous, and this is a plain Session, which can't await it; use an AsyncSession, "
        "a synchronous callback, or audit_context(user_id=...)."
    )


# --- the INSERT ------------------------------------------------------------------------------------------------------

MAX_DOCUMENT: Final = 8 * 2**20
"""Bytes. MariaDB takes packets of 16 MB unless it is told otherwise."""

_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode
_encode_ascii: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class _Unpacking:
    """How a database makes rows of a JSON document: an array of changes, each an array of its values."""

    rows: str
    text: Callable[[int], str]
    """Of the place of a value in a change: its text."""
    document: Callable[[int], str]
    """Of the place of a value in a change: the document; NULL for null."""
    place: str
    condition: str | None = None
    """Without which nothing is written."""


_UNPACKING: Final = {
    "postgresql": _Unpacking(
        "jsonb_array_elements(CAST(:changes AS jsonb)) WITH ORDINALITY AS change(value, place)",
        "(change.value ->> {})".format,
        "NULLIF(change.value -> {}, 'null')".format,
        "change.place",
    ),
    "sqlite": _Unpacking(
        "json_each(:changes) AS change",
        "json_extract(change.value, '$[{}]')".format,
        "json_extract(change.value, '$[{}]')".format,
        "change.key",
    ),
    "mysql": _Unpacking(
        "JSON_TABLE(:changes, '$[*]' COLUMNS (place FOR ORDINALITY, "
        + ", ".join(f"text{place} TEXT CHARACTER SET utf8mb4 PATH '$[{place}]'" for place in range(4))
        + ", "
        + ", ".join(f"document{place} LONGTEXT CHARACTER SET utf8mb4 PATH '$[{place}]'" for place in (4, 5))
        + ")) AS `change`",
        "`change`.text{}".format,
        "`change`.document{}".format,
        "`change`.place",
        "@@SESSION.sql_mode LIKE '%STRICT%'",
    ),
}


@lru_cache(maxsize=32)
def _insert_into(trail: Table, dialect: str) -> Insert:
    """
    Return the INSERT of any number of changes, which come as one JSON document.

    One parameter takes a database less time than six for each change. The ids
    are given in the order of the document.
    """
    unpacking = _UNPACKING.get("mysql" if dialect == "mariadb" else dialect)
    if unpacking is None:
        raise CaptureError(
            f"The trail can be kept on PostgreSQL, SQLite, MariaDB and MySQL; this database is {dialect}."
        )
    columns = trail.columns
    values: dict[Any, Any] = {
        column: bindparam(column.key, type_=column.type)
        for column in (columns.transaction_id, columns.impersonated_by, columns.reason, columns.context)
    }
    values[columns.recorded_at] = _clock(trail, dialect)
    texts = (columns.operation, columns.resource_type, columns.resource_id, columns.changed_by)
    for place, column in enumerate(texts):
        values[column] = literal_column(unpacking.text(place))
    for place, column in enumerate((columns.old_values, columns.new_values), len(texts)):
        values[column] = literal_column(unpacking.document(place))
    rows = select(*values.values()).select_from(text(unpacking.rows)).order_by(literal_column(unpacking.place))
    if unpacking.condition is not None:
        rows = rows.where(text(unpacking.condition))
    return reusable(trail.insert().from_select(list(values), rows, include_defaults=False))


def _clock(trail: Table, dialect: str) -> ColumnElement[Any]:
    """
    Return the time of the statement, not of its transaction's beginning: by the database's clock.

    SQLite has none but the processes'. They may differ, and the trail doesn't run
    backwards: a change is never told to be older than the one before it.
    """
    if dialect == "postgresql":
        return func.clock_timestamp()
    if dialect != "sqlite":
        return func.utc_timestamp(literal_column("6"))
    last = select(trail.c.recorded_at).order_by(trail.c.id.desc()).limit(1).scalar_subquery()
    return func.max(bindparam("now", type_=trail.c.recorded_at.type), func.coalesce(last, ""))


def new_transaction_id() -> uuid.UUID:
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
