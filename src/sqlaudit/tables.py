"""
Where the trail is stored: one append-only Core table.

Its schema only grows, so that a release writes to the trail of a later one, too: a later version
of it has more columns, which may be NULL, and more indexes. What is told of an earlier version here
stays as it is; what is new bears ``info={SINCE: version}``, and both `upgrade_audit_tables` and Alembic
bring it into trails that there are.
"""

import datetime as dt
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles

from sqlaudit.exceptions import ConfigurationError

__all__ = ["audit_metadata", "change_table", "trail_table"]


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


MAX_MYSQL_KEY: Final = 660
"""Characters of a resource id: with the label, what an index of MariaDB and MySQL can hold."""


def _uuid() -> Uuid[Any]:
    # SQLAlchemy 2.1 has MariaDB's UUID, 2.0 hasn't: whoever goes from one to the other has the same table.
    return Uuid().with_variant(Uuid(native_uuid=False), "mysql", "mariadb")


def _json() -> JSON:
    document = JSON(none_as_null=True)
    return document.with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


class _ExactText(mysql.VARCHAR):
    """Text that MariaDB and MySQL compare to the letter: with case, accents and trailing blanks."""


@compiles(_ExactText, "mysql", "mariadb")
def _(type_: Any, compiler: Any, **_: Any) -> str:
    # Which collation there is depends on the server, not on the name of the dialect.
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    kind = "TEXT" if type_.length is None else f"VARCHAR({type_.length})"
    return f"{kind} CHARACTER SET utf8mb4 COLLATE {collation}"


def _text(length: int | None, *, mysql_length: int | None) -> Text | String:
    # MariaDB and MySQL index text only with a length, at most 3,072 bytes of it in one index; and compare without case.
    plain = Text() if length is None else String(length)
    return plain.with_variant(_ExactText(mysql_length), "mysql", "mariadb")


audit_metadata: Final = MetaData()
"""The `MetaData` of the trail. Give it to Alembic: ``target_metadata = [Base.metadata, audit_metadata]``."""


SINCE: Final = "sqlaudit_since"
"""In the info of a part of the trail: which version of the schema brought it, if not the first."""


def since(part: Column[Any] | Index) -> int:
    """Return the version of the trail's schema that brought a column or an index of it."""
    version: int = part.info.get(SINCE, 1)
    return version


def newest_version() -> int:
    """Return the version of the trail's schema that this release writes."""
    return max(since(part) for part in _parts("any"))


def trail_table(name: str = "sqlaudit_change", *, schema: str | None = None, metadata: MetaData | None = None) -> Table:
    """
    Return a table that holds a trail, for ``SQLAuditConfig(trail=...)``: one row per change.

    Args:
        name: its name.
        schema: its schema; the connection's default one, if not given, or what
            a ``schema_translate_map`` makes of None.
        metadata: the `MetaData` that it shall be a part of, the application's
            own for example; one of its own, if not given.

    Raises:
        ConfigurationError: an argument has a wrong type.
        sqlalchemy.exc.InvalidRequestError: *metadata* has another table of that name.
    """
    for argument, value in (("name", name), ("schema", schema)):
        if not isinstance(value, str) and (value is not None or argument == "name"):
            raise ConfigurationError(f"{argument} of trail_table() is {value!r}; expected a str.")
    if not name:
        raise ConfigurationError("name of trail_table() is ''; expected the name of a table.")
    if metadata is not None and not isinstance(metadata, MetaData):
        raise ConfigurationError(f"metadata of trail_table() is {metadata!r}; expected a MetaData, or None.")
    return trail_of_version(newest_version(), name, schema, MetaData() if metadata is None else metadata)


def trail_of_version(version: int, name: str, schema: str | None, metadata: MetaData) -> Table:
    """Return a trail's table as *version* of its schema had it."""
    return Table(
        name,
        metadata,
        *(part for part in _parts(name) if since(part) <= version),
        schema=schema,
        comment="the audit trail, append-only; written by sqlaudit",
        # An id that was once given is never given again.
        sqlite_autoincrement=True,
    )


def _parts(name: str) -> list[Column[Any] | Index]:
    """Return the columns and indexes of the trail *name*; those of a later version at the end of theirs."""
    return [
        Column(
            "id",
            BigInteger().with_variant(Integer, "sqlite"),
            Identity(),
            primary_key=True,
            comment="grows in the order of time; for one resource, the order in which it was changed",
        ),
        Column("transaction_id", _uuid(), nullable=False, comment="the same for all changes of one transaction"),
        Column("recorded_at", UTCDateTime, nullable=False, comment="the database's clock at the statement, UTC"),
        Column("operation", String(8), nullable=False, comment="insert, update, delete or baseline"),
        Column("resource_type", _text(100, mysql_length=100), nullable=False, comment="the label of the changed table"),
        Column(
            "resource_id",
            _text(None, mysql_length=MAX_MYSQL_KEY),
            nullable=False,
            comment="the key; a JSON array for several columns",
        ),
        Column("changed_by", _text(255, mysql_length=255), comment="who; NULL if nobody knows"),
        Column("impersonated_by", _text(255, mysql_length=255), comment="who acted as changed_by"),
        Column("reason", _text(None, mysql_length=None), comment="why"),
        Column("context", _json(), comment="extra facts"),
        Column("old_values", _json(), comment="by column key; NULL for an insert"),
        Column("new_values", _json(), comment="by column key; NULL for a delete"),
        Index(f"{name}_resource", "resource_type", "resource_id", "id"),
        Index(f"{name}_actor", "changed_by", "recorded_at"),
        Index(f"{name}_transaction", "transaction_id"),
        # Where ranges of pages can be indexed, the changes of a period cost nothing to find: they lie side by side.
        Index(f"{name}_time", "recorded_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}).ddl_if(
            dialect="postgresql"
        ),
    ]


change_table: Final = trail_table(metadata=audit_metadata)
"""The trail, if the configuration names no other."""


def is_trail(table: object) -> bool:
    """Return whether *table* has the columns of a trail, of any version."""
    first = {column.key for column in change_table.columns if since(column) == 1}
    return isinstance(table, Table) and first <= {*table.columns.keys()}
