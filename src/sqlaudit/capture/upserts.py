"""The capture of upserts: which rows the new ones will meet, and what becomes of both."""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    Table,
    UniqueConstraint,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.mysql.dml import OnDuplicateClause
from sqlalchemy.engine import CursorResult

from sqlaudit.capture.rows import ROWS_PER_SELECT, AuditedTable, Image, RowChange, among, batched, select_images
from sqlaudit.capture.sending import Batches, Key, Pending, Sending, changed_unread, other_rows
from sqlaudit.capture.spool import Spool
from sqlaudit.exceptions import UncapturedStatementError
from sqlaudit.types import Operation

__all__ = ["read_before_upsert"]


def read_before_upsert(sending: Sending, audited: AuditedTable, conflict: Any) -> Pending:
    """
    Read the rows that an INSERT with an ON CONFLICT DO UPDATE, or ON DUPLICATE KEY UPDATE, will meet.

    Raises:
        UncapturedStatementError: it isn't known which rows these are.
    """
    if isinstance(conflict, OnDuplicateClause):
        uniques = [] if _is_unpredictable(audited.table) else list(_unique_keys(audited.table))
    else:
        columns = _conflict_columns(audited.table, conflict)
        uniques = [] if columns is None else [columns]
    _refuse_new_key(audited, conflict, uniques)
    return _read_before_upsert(sending, audited, uniques)


def _read_before_upsert(sending: Sending, audited: AuditedTable, uniques: Sequence[Sequence[Column[Any]]]) -> Pending:
    """Read the rows that the new ones will conflict with, by the columns that a conflict can be about."""
    given = [] if not uniques else list(_values_of(sending, {column for columns in uniques for column in columns}))
    if not given or not all(_can_conflict(row, uniques) for row in given):
        raise UncapturedStatementError(
            "An upsert",
            audited.table.name,
            "name the columns of the conflict with index_elements=, or declare the unique key in the model, and give "
            "plain values for them",
        )
    query = select_images(audited)
    rows: Spool[_Expected] = Spool()
    for chunk in batched(given, ROWS_PER_SELECT):
        conflicting = _conflicting(chunk, uniques)
        select_old = query.select.where(conflicting)
        old = [query.decode(row) for row in sending.connection.execute(select_old, execution_options=sending.options)]
        rows.put([_Expected(conflicting, old, _least_rows(chunk, uniques))])
    return Pending(sending.statement, partial(_tell_upserted, sending, audited, rows))


def _refuse_new_key(audited: AuditedTable, conflict: Any, uniques: Sequence[Sequence[Column[Any]]]) -> None:
    """Refuse an upsert that gives a row that it meets another key than its own, or the one they have in common."""
    set_: Any = getattr(conflict, "update_values_to_set", None) or getattr(conflict, "update", None) or {}
    own = {column.name for column in audited.table.primary_key}
    meets_by_key = all({column.name for column in columns} == own for columns in uniques)
    for name, value in dict(set_).items():
        key = str(getattr(name, "name", name))
        source = getattr(value, "table", None) if getattr(value, "name", None) == key else None
        is_same = source is not None and (meets_by_key or getattr(source, "name", None) == audited.table.name)
        if key in own and not is_same:
            raise UncapturedStatementError(
                "An upsert that sets the primary key", audited.table.name, "load the objects, set their keys and flush"
            )


@dataclass(frozen=True, slots=True)
class _Expected:
    """A part of the rows that an upsert brings."""

    conflicting: ColumnElement[bool]
    """Which rows have the unique values of the new ones: those that are met, and those that are inserted."""
    old: list[tuple[Key, Image]]
    """The rows that had them before."""
    least: int
    """So many rows there must be with unique values of the new ones."""


def _least_rows(rows: Sequence[Mapping[Column[Any], Any]], uniques: Sequence[Sequence[Column[Any]]]) -> int:
    """
    Return how many rows there are at least that have a unique key of *rows*, once they were sent.

    Rows of one key become one; for a collation, a text is the same in other
    letters. Fewer were met by a key that the model doesn't know.
    """
    counts = []
    for columns in uniques:
        keys = [tuple(_collated(row[column]) for column in columns) for row in rows]
        if not any(None in key for key in keys):
            counts.append(len({*keys}))
    return min(counts, default=0)


def _collated(value: Any) -> Any:
    """Return what a collation that tells the fewest letters apart makes of a text."""
    if not isinstance(value, str):
        return value
    letters = (each for each in unicodedata.normalize("NFKD", value) if not unicodedata.combining(each))
    return "".join(letters).casefold().rstrip()


def _tell_upserted(
    sending: Sending, audited: AuditedTable, rows: Spool[_Expected], result: CursorResult[Any]
) -> Batches:
    query = select_images(audited)
    # Two values that Python tells apart may be one for the database, in different parts.
    told: set[str] = set()
    for chunk in rows.take():
        for expected in chunk:
            old = {audited.row_key(key): (key, image) for key, image in expected.old}
            criterion = expected.conflicting
            if old:
                criterion = or_(criterion, among(query.primary_key, [key for key, _ in old.values()]))
            changes: list[RowChange] = []
            met = _met_by_conflict(sending, audited, expected.conflicting)
            found = 0
            for row in sending.connection.execute(query.select.where(criterion), execution_options=sending.options):
                key, new = query.decode(row)
                row_key = audited.row_key(key)
                found += 1
                if row_key in told:
                    continue
                told.add(row_key)
                if row_key in old:
                    changes.extend(audited.changes(Operation.UPDATE, old[row_key][1], new))
                    continue
                if row_key in met:
                    raise changed_unread(1, sending)
                changes.extend(audited.changes(Operation.INSERT, {}, new))
            if found < expected.least and _is_mysql(sending):
                raise other_rows(sending)
            yield changes
    if not sending.is_many and not _is_mysql(sending) and result.rowcount > len(told):
        # The column makes another value of what it is given, by which the rows weren't found.
        raise other_rows(sending)


def _is_mysql(sending: Sending) -> bool:
    return sending.connection.dialect.name in ("mysql", "mariadb")


def _met_by_conflict(sending: Sending, audited: AuditedTable, criterion: ColumnElement[bool]) -> set[str]:
    """
    Return the rows that were there when the upsert came to them; only PostgreSQL can say.

    There, an upsert waits for a row that another transaction has inserted, and
    then updates what nobody could read before. A row that it has inserted has no xmax.
    """
    # A foreign key to the table itself locks the rows that it refers to, which gives them an xmax, too.
    refers_to_itself = any(each.referred_table is audited.table for each in audited.table.foreign_key_constraints)
    if sending.connection.dialect.name != "postgresql" or refers_to_itself:
        return set()
    primary_key = [audited.table.columns[key] for key in audited.primary_key]
    met = select(*primary_key).where(criterion, literal_column("xmax::text") != "0")
    return {audited.row_key(tuple(row)) for row in sending.connection.execute(met, execution_options=sending.options)}


def _conflict_columns(table: Table, conflict: Any) -> Sequence[Column[Any]] | None:
    """Return the columns that an ON CONFLICT is about; None if they aren't columns, or aren't said."""
    elements = conflict.inferred_target_elements
    name = getattr(conflict, "constraint_target", None)
    if elements is None and name is not None:
        constraints: list[Any] = [*table.constraints, *table.indexes]
        named = {each.name: each for each in constraints}
        elements = list(named[name].columns) if name in named else None
    if not elements:
        return None
    by_name = {column.name: column for column in table.columns}
    found = [by_name.get(element if isinstance(element, str) else getattr(element, "name", "")) for element in elements]
    known = [column for column in found if column is not None]
    return known if len(known) == len(found) else None


def _unique_keys(table: Table) -> Iterator[Sequence[Column[Any]]]:
    """Yield the columns of each key by which a row may be a duplicate."""
    yield list(table.primary_key)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield list(constraint.columns)
    for index in table.indexes:
        if index.unique:
            yield list(index.columns)


def _is_unpredictable(table: Table) -> bool:
    """Return whether a unique index is of expressions, or of the beginnings of values: what meets isn't known."""
    prefixes = ("mysql_length", "mariadb_length")
    return any(
        index.unique
        and (len(index.expressions) != len(index.columns) or any(index.dialect_kwargs.get(each) for each in prefixes))
        for index in table.indexes
    )


_UNKNOWN: Final = object()
"""In place of a value that the database, or a function of Python, will make."""


def _values_of(sending: Sending, columns: Collection[Column[Any]]) -> Iterator[dict[Column[Any], Any]]:
    """Yield what each new row will have in *columns*: a plain value, None for NULL or a generated key, or unknown."""
    insert: Any = sending.statement
    omitted = {column: _default_of(column) for column in columns}
    if insert.select is not None:
        names = [getattr(name, "key", name) for name in insert._select_names]
        selected = [column for column in columns if column.key in names]
        subquery = insert.select.subquery()
        exported = list(subquery.columns)
        query = subquery.select().with_only_columns(*(exported[names.index(column.key)] for column in selected))
        for row in sending.connection.execute(query.params(sending.parameters[0])) if selected else ():
            yield omitted | dict(zip(selected, row, strict=True))
        return
    fixed = sending.state._multi_parameters or [sending.state._dict_parameters or {}]
    for parameters in sending.parameters:
        for values in fixed:
            by_key = {getattr(name, "key", name): _plain(value) for name, value in values.items()} | dict(parameters)
            yield omitted | {column: _known(by_key[column.key]) for column in columns if column.key in by_key}


def _default_of(column: Column[Any]) -> Any:
    """Return what a row will have in a column that nobody gives."""
    if column.table is not None and column is column.table.autoincrement_column:
        return None
    default: Any = column.default
    if default is None:
        return None if column.server_default is None else _UNKNOWN
    return default.arg if default.is_scalar else _UNKNOWN


def _known(value: Any) -> Any:
    return _UNKNOWN if isinstance(value, ClauseElement) else value


def _can_conflict(row: Mapping[Column[Any], Any], uniques: Sequence[Sequence[Column[Any]]]) -> bool:
    """Return whether a row is found by one of its unique keys, and none of them is unknown."""
    values = [[row[column] for column in columns] for columns in uniques]
    return any(None not in key for key in values) and not any(each is _UNKNOWN for key in values for each in key)


def _conflicting(
    rows: Sequence[Mapping[Column[Any], Any]], uniques: Sequence[Sequence[Column[Any]]]
) -> ColumnElement[bool]:
    """Return the criterion of rows that have a unique key of one of *rows*; NULL conflicts with nothing."""
    criteria = []
    for columns in uniques:
        values = dict.fromkeys(tuple(row[column] for column in columns) for row in rows)
        complete = [key for key in values if None not in key]
        if complete:
            criteria.append(among(columns, complete))
    return or_(*criteria)


def _plain(value: Any) -> Any:
    return value.effective_value if isinstance(value, BindParameter) else value
