"""What leads from one version of the trail's schema to another, and which one is there."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Index, MetaData, Table, inspect
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement, SetColumnComment

from sqlaudit._places import schema_of
from sqlaudit.exceptions import TrailOutdatedError, TrailVersionError
from sqlaudit.tables import newest_version, since, trail_of_version

Statements = list[ExecutableDDLElement]


class _AlterColumn(ExecutableDDLElement):
    """What SQLAlchemy leaves to Alembic, which need not be installed."""

    inherit_cache = False

    def __init__(self, column: Column[Any]) -> None:
        self.column = column


class _AddColumn(_AlterColumn):
    """Give the column's table the column."""


class _DropColumn(_AlterColumn):
    """Take the column from its table."""


@compiles(_AddColumn)
def _(element: _AddColumn, compiler: Any, **_: Any) -> str:
    column = element.column
    return f"{_alter(element, compiler)} ADD COLUMN {compiler.get_column_specification(column)}"


@compiles(_DropColumn)
def _(element: _DropColumn, compiler: Any, **_: Any) -> str:
    return f"{_alter(element, compiler)} DROP COLUMN {compiler.preparer.format_column(element.column)}"


def _alter(element: _AlterColumn, compiler: Any) -> str:
    return f"ALTER TABLE {compiler.preparer.format_table(element.column.table)}"


def statements_between(
    trail: Table, from_version: int, to_version: int, dialect: Dialect, *, there: Collection[str] = ()
) -> Statements:
    """
    Return what makes one version of *trail*'s schema of another; 0 is the version of a trail that isn't there.

    Args:
        trail: names the table. Its columns don't matter.
        from_version: the version that it has.
        to_version: the version that it gets: an earlier one takes away what later ones brought.
        dialect: the database's.
        there: names of later columns and indexes that are there already, and stay as they are.

    Raises:
        TrailVersionError: this release doesn't know the version.
    """
    newest = newest_version()
    for version in (from_version, to_version):
        if not 0 <= version <= newest:
            raise TrailVersionError(trail.fullname, version, newest)
    larger = trail_of_version(max(from_version, to_version), trail.name, trail.schema, MetaData())
    if from_version == to_version:
        return []
    if from_version == 0:
        return _sent_by(larger.create, dialect)
    if to_version == 0:
        return _sent_by(larger.drop, dialect)
    if from_version > to_version:
        return [each for part in reversed(_parts(larger, to_version, dialect)) for each in _taking(part, dialect)]
    parts = _parts(larger, from_version, dialect)
    return [each for part in parts if part.name not in there for each in _bringing(part, dialect)]


def parts_there(connection: Connection, trail: Table) -> set[str]:
    """Return the names of the columns and indexes that *trail* has in the database: none where it isn't there."""
    inspector = inspect(connection)
    schema = schema_of(connection, trail)
    if not inspector.has_table(trail.name, schema=schema):
        return set()
    indexes = {str(index["name"]) for index in inspector.get_indexes(trail.name, schema=schema)}
    return indexes | {column["name"] for column in inspector.get_columns(trail.name, schema=schema)}


def version_there(connection: Connection, trail: Table) -> int:
    """
    Return the version of *trail*'s schema in the database; 0 where it isn't there.

    It is told by the columns and indexes that are there: nothing else would have to be kept right.

    Raises:
        TrailOutdatedError: the table isn't a trail.
    """
    there = parts_there(connection, trail)
    if not there:
        return 0
    newest = newest_version()
    known = trail_of_version(newest, trail.name, trail.schema, MetaData())
    lacking = [column.name for column in known.columns if since(column) == 1 and column.name not in there]
    if lacking:
        raise TrailOutdatedError(trail.fullname, lacking)
    missing = [since(part) for part in _parts(known, 1, connection.dialect) if part.name not in there]
    return min(missing, default=newest + 1) - 1


def _parts(trail: Table, after: int, dialect: Dialect) -> list[Column[Any] | Index]:
    """Return what *trail* has since the version *after*, columns first, indexes only where *dialect* has them."""
    indexes = sorted(trail.indexes, key=lambda index: str(index.name))
    on_it = [index for index in indexes if _sent_by(index.create, dialect)]
    return [part for part in (*trail.columns, *on_it) if since(part) > after]


def _bringing(part: Column[Any] | Index, dialect: Dialect) -> Iterator[ExecutableDDLElement]:
    if isinstance(part, Index):
        yield from _sent_by(part.create, dialect)
        return
    yield _AddColumn(part)
    if part.comment and dialect.supports_comments and not dialect.inline_comments:
        yield SetColumnComment(part)


def _taking(part: Column[Any] | Index, dialect: Dialect) -> Iterator[ExecutableDDLElement]:
    if isinstance(part, Index):
        yield from _sent_by(part.drop, dialect)
    else:
        yield _DropColumn(part)


def _sent_by(work: Callable[..., None], dialect: Dialect) -> Statements:
    """Return what *work* sends to a database, which is none."""
    sent: Statements = []
    work(MockConnection(dialect, lambda statement, *_: sent.append(statement)), checkfirst=False)
    return sent
