"""Where the trail is stored: one append-only Core table, and how it is created."""

import datetime as dt
from collections.abc import Awaitable
from typing import Any, Final, overload

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    event,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["audit_metadata", "change_table", "create_audit_tables", "create_audit_tables_sync"]


class UTCDateTime(TypeDecorator[dt.datetime]):
    """An aware datetime in UTC, with microseconds, also where the database has no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return a type that keeps microseconds."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Return *value* in UTC, without an offset where it would be lost or misread."""
        if value is None:
            return None
        value = value.astimezone(dt.UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Return *value* as an aware datetime in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def _json() -> JSON:
    document = JSON(none_as_null=True)
    return document.with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def _key_text() -> Text:
    # MariaDB and MySQL index no text without a length, and compare without case.
    indexed = mysql.VARCHAR(512, charset="utf8mb4", collation="utf8mb4_bin")
    return Text().with_variant(indexed, "mysql", "mariadb")


audit_metadata: Final = MetaData()
"""The `MetaData` of the trail. Give it to Alembic: ``target_metadata = [Base.metadata, audit_metadata]``."""

change_table: Final = Table(
    "sqlaudit_change",
    audit_metadata,
    Column(
        "id",
        BigInteger().with_variant(Integer, "sqlite"),
        Identity(),
        primary_key=True,
        comment="grows in the order of time; for one resource, the order in which it was changed",
    ),
    Column("transaction_id", Uuid, nullable=False, comment="the same for all changes of one transaction"),
    Column("recorded_at", UTCDateTime, nullable=False, comment="the database's clock at the statement, UTC"),
    Column("operation", String(8), nullable=False, comment="insert, update, delete or baseline"),
    Column("resource_type", String(255), nullable=False, comment="the label of the changed table"),
    Column("resource_id", _key_text(), nullable=False, comment="the key; a JSON array for several columns"),
    Column("changed_by", String(255), comment="who; NULL if nobody knows"),
    Column("impersonated_by", String(255), comment="who acted as changed_by"),
    Column("reason", Text, comment="why"),
    Column("context", _json(), comment="extra facts"),
    Column("old_values", _json(), comment="by column key; NULL for an insert"),
    Column("new_values", _json(), comment="by column key; NULL for a delete"),
    Index("sqlaudit_change_resource", "resource_type", "resource_id", "id"),
    Index("sqlaudit_change_actor", "changed_by", "recorded_at"),
    Index("sqlaudit_change_transaction", "transaction_id"),
    comment="the audit trail, append-only; written by sqlaudit",
    # An id that was once given is never given again.
    sqlite_autoincrement=True,
)
"""The trail, one row per change."""


@overload
def create_audit_tables(bind: AsyncEngine | AsyncConnection) -> Awaitable[None]: ...
@overload
def create_audit_tables(bind: Engine | Connection) -> None: ...
def create_audit_tables(bind: AsyncEngine | AsyncConnection | Engine | Connection) -> Awaitable[None] | None:
    """
    Create the trail's table where it doesn't exist yet.

    ``MetaData.create_all()`` of tracked models does it, too. With Alembic, use
    `audit_metadata` instead.

    Args:
        bind: an engine, or a connection whose transaction shall be used. Await
            the result if it is asynchronous.

    Raises:
        TypeError: *bind* is neither.
    """
    if isinstance(bind, (AsyncEngine, AsyncConnection)):
        return _create_async(bind)
    create_audit_tables_sync(bind)
    return None


def create_audit_tables_sync(bind: Engine | Connection) -> None:
    """
    Create the trail's table where it doesn't exist yet: `create_audit_tables` for synchronous code.

    Raises:
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    if not isinstance(bind, (Engine, Connection)):
        raise TypeError(f"bind is a {type(bind).__name__}; expected an Engine or Connection.")
    audit_metadata.create_all(bind)


async def _create_async(bind: AsyncEngine | AsyncConnection) -> None:
    if isinstance(bind, AsyncConnection):
        await bind.run_sync(create_audit_tables_sync)
        return
    async with bind.begin() as connection:
        await connection.run_sync(create_audit_tables_sync)


def create_trail_with(metadata: MetaData) -> None:
    """Make ``metadata.create_all()`` create the trail, too: tracked tables can't be written without it."""
    if not event.contains(metadata, "after_create", _create_trail):
        event.listen(metadata, "after_create", _create_trail)


def _create_trail(metadata: MetaData, connection: Connection, **_: Any) -> None:
    create_audit_tables_sync(connection)
