"""
The capture of statements: what a session sends beside the flush.

Before the statement, the rows that it will change are read and locked, by its
own criterion; after it, they are read again. The statement and its result stay
as they are, with one exception: an INSERT whose keys nobody would learn gets a
RETURNING, which its result doesn't show.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Alias,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    TableClause,
    bindparam,
    or_,
)
from sqlalchemy.dialects.mysql.dml import OnDuplicateClause
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ScalarSelect, SelectBase

from sqlaudit.capture.cascades import CascadedRows, has_dependents, read_cascaded
from sqlaudit.capture.connections import as_sqlalchemy_raises, refuse_autocommit
from sqlaudit.capture.division import tracking_in_session
from sqlaudit.capture.rows import (
    ROWS_PER_SELECT,
    AuditedTable,
    Image,
    ParameterSets,
    RowChange,
    among,
    audited_table,
    batched,
    inserted_image,
    read_images,
    select_images,
)
from sqlaudit.capture.sending import Batches, Key, Pending, Sending, changed_unread, other_rows
from sqlaudit.capture.spool import Spool
from sqlaudit.capture.unit_of_work import Flush
from sqlaudit.capture.upserts import read_before_upsert
from sqlaudit.exceptions import CaptureError, UncapturedStatementError
from sqlaudit.tracking import all_tracked
from sqlaudit.types import Operation

__all__ = ["Pending", "is_bulk", "places_in", "read_before", "tell", "written_table"]


_BULK: Final = frozenset({"_emit_insert_table", "_emit_update_table"})

_PLACES: Final = ("schema_translate_map",)

CRITERIA_PER_SELECT: Final = 100
"""SQLite's expressions are at most 1,000 deep."""


def is_bulk(statement: UpdateBase) -> bool:
    """Return whether *statement* is the user's, of a model, sent by the ORM for many parameter sets."""
    return not _BULK.isdisjoint(statement._annotations)


def written_table(statement: UpdateBase) -> Table | None:
    """Return the table that *statement* writes; None if it is of no table, as of a join."""
    # An ORM bulk statement on joined tables is sent once for each, which its annotations name.
    annotations: Mapping[str, Any] = statement._annotations
    target: Any = annotations.get("_emit_update_table", annotations.get("_emit_insert_table", statement.table))
    while isinstance(target, Alias):
        target = target.element
    if not isinstance(target, Table):
        return None
    # The ORM annotates its tables: what is annotated is a copy.
    return target.metadata.tables.get(target.key, target)


def places_in(execution_options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return those of a statement's execution options that say where its tables are."""
    return {key: execution_options[key] for key in _PLACES if key in execution_options}


def read_before(
    connection: Connection,
    statement: UpdateBase,
    parameters: ParameterSets,
    execution_options: Mapping[str, Any],
    *,
    of_a_mapper: bool,
) -> Pending | None:
    """
    Read what *statement* will change; None if it changes nothing that is audited.

    The rows of a statement that the unit of work sends *of a mapper* are
    captured by the unit of work; only what the database does beyond them counts.

    Raises:
        UncapturedStatementError: it would change tracked rows in a way that can't be captured exactly.
    """
    table = written_table(statement)
    if table is None:
        _refuse_hidden_tables(statement)
        return None
    if isinstance(statement, Update):
        _refuse_other_tables(statement, table)
    tracking = None if of_a_mapper else tracking_in_session(table)
    effect = None if isinstance(statement, Delete) else frozenset(table.columns.keys())
    cascades = not isinstance(statement, Insert) and has_dependents(table, effect)
    if tracking is None and not cascades:
        return None
    refuse_autocommit(connection)
    _refuse_unrepeatable(statement, table, many=len(parameters) > 1)
    compiled: Any = statement.compile(dialect=connection.dialect, column_keys=sorted(parameters[0]))
    state = compiled.compile_state
    returned = compiled.effective_returning if len(statement.exported_columns) else ()
    options = places_in(execution_options)
    sending = Sending(
        connection,
        statement,
        state,
        returned or (),
        state.statement.table,
        parameters,
        counts_late=bool(compiled.effective_returning),
        options=options,
    )
    audited = None if tracking is None else audited_table(table, tracking, connection.dialect)
    if isinstance(statement, Insert):
        return None if audited is None else _read_before_insert(sending, audited)
    cascaded = _read_dependents(sending, table) if cascades else None
    if audited is None:
        return Pending(statement, _tell_nothing, cascaded)
    if isinstance(statement, Delete):
        return _read_before_delete(sending, audited, cascaded)
    return _read_before_update(sending, audited, cascaded)


def tell(pending: Pending, connection: Connection, result: CursorResult[Any], flush: Flush | None) -> Batches:
    """
    Yield what a statement has done, what the database did to other rows first.

    Raises:
        CaptureError: it changed rows that were not read before.
    """
    if pending.cascaded is not None:
        changes: list[RowChange] = []
        for table, row_key, found in pending.cascaded.changes(connection):
            if flush is not None and any(change.operation is Operation.DELETE for change in found):
                flush.skip(table, row_key)
            changes.extend(found)
        yield changes
    yield from pending.own_changes(result)


def _tell_nothing(result: CursorResult[Any]) -> Batches:
    return iter(())


# --- UPDATE and DELETE -----------------------------------------------------------------------------------------------


def _read_before_update(sending: Sending, audited: AuditedTable, cascaded: CascadedRows | None) -> Pending:
    columns = _set_columns(sending, audited.table)
    if columns & {*audited.primary_key}:
        raise UncapturedStatementError(
            "An UPDATE of the primary key",
            audited.table.name,
            "load the objects, set their keys and flush",
        )
    changing = {key for key in audited.codecs if key in columns or _is_volatile(audited.table.columns[key])}
    # Another resource id ends one resource and begins another: all of the row is told.
    another = changing & {*audited.tracking.resource_key}
    wanted = frozenset(audited.codecs) if another else audited.tracking.key_columns | changing
    old = _read_rows(sending, audited, wanted, None)
    tell_update = partial(_tell_update, sending, audited, wanted, old)
    return Pending(sending.statement, tell_update, cascaded, is_certain=_needs_user(audited) and old.count > 0)


def _is_volatile(column: Column[Any]) -> bool:
    """Return whether an UPDATE may change a column that it doesn't name."""
    # A Computed is its column's server_onupdate, too.
    return column.onupdate is not None or column.server_onupdate is not None


def _tell_update(
    sending: Sending,
    audited: AuditedTable,
    wanted: frozenset[str],
    old: Spool[tuple[Key, Image]],
    result: CursorResult[Any],
) -> Batches:
    _check_count(sending, old.count, result)
    for chunk in old.take():
        new = read_images(sending.connection, audited, wanted, [key for key, _ in chunk], sending.options)
        yield [
            change
            for key, image in chunk
            if (row_key := audited.row_key(key)) in new
            for change in audited.changes(Operation.UPDATE, image, new[row_key])
        ]


def _read_before_delete(sending: Sending, audited: AuditedTable, cascaded: CascadedRows | None) -> Pending:
    # Rows that go by the statement and by a cascade go once.
    row_keys: set[str] | None = set() if cascaded is not None and audited.table in cascaded.tables else None
    old = _read_rows(sending, audited, None, row_keys)
    if cascaded is not None and row_keys is not None:
        cascaded.forget(audited.table, row_keys)
    tell_delete = partial(_tell_delete, sending, audited, old)
    return Pending(sending.statement, tell_delete, cascaded, is_certain=_needs_user(audited) and old.count > 0)


def _needs_user(audited: AuditedTable) -> bool:
    return audited.tracking.user_key is None


def _tell_delete(
    sending: Sending, audited: AuditedTable, old: Spool[tuple[Key, Image]], result: CursorResult[Any]
) -> Batches:
    _check_count(sending, old.count, result)
    for chunk in old.take():
        if read_images(sending.connection, audited, audited.primary_key, [key for key, _ in chunk], sending.options):
            raise other_rows(sending)
        yield [change for _, image in chunk for change in audited.changes(Operation.DELETE, image, {})]


def _read_rows(
    sending: Sending, audited: AuditedTable, wanted: frozenset[str] | None, row_keys: set[str] | None
) -> Spool[tuple[Key, Image]]:
    """Read and lock the rows that match the statement's criterion, in bounded memory; collect their *row_keys*."""
    query = select_images(audited, wanted, sending.target)
    rows: Spool[tuple[Key, Image]] = Spool()
    for criterion in _criteria(sending, query.primary_key):
        select = query.select if criterion is None else query.select.where(criterion)
        if row_keys is None and (sending.is_many or len(select.get_final_froms()) > 1):
            # Several parameter sets, and an UPDATE..FROM, can find a row more than once.
            row_keys = set()
        for partition in _partitions(sending, select):
            chunk = {audited.row_key(key): (key, image) for key, image in map(query.decode, partition)}
            if row_keys is not None:
                chunk = {row_key: row for row_key, row in chunk.items() if row_key not in row_keys}
                row_keys.update(chunk)
            rows.put(list(chunk.values()))
    return rows


def _partitions(sending: Sending, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    """Yield the rows of *query* in parts, of which one is in memory."""
    options = {**sending.options, "yield_per": ROWS_PER_SELECT}
    try:
        yield from sending.connection.execute(query, execution_options=options).partitions()
    except SQLAlchemyError:
        raise
    except Exception as error:
        raise as_sqlalchemy_raises(sending.connection, error) from error


def _criteria(sending: Sending, primary_key: Sequence[ColumnElement[Any]]) -> Iterator[ColumnElement[bool] | None]:
    """Yield the statement's criterion; for several parameter sets as many as it takes to cover them all."""
    where: ColumnElement[bool] | None = sending.state.statement.whereclause
    if where is None:
        yield None
    elif not sending.is_many:
        yield _with_values(where, sending.parameters[0])
    elif (names := _bound_to_key(where, primary_key)) is not None:
        keys = [tuple(parameters[name] for name in names) for parameters in sending.parameters]
        for chunk in batched(dict.fromkeys(keys), ROWS_PER_SELECT):
            yield among(primary_key, chunk)
    else:
        for sets in batched(sending.parameters, CRITERIA_PER_SELECT):
            yield or_(*(_with_values(where, each) for each in sets))


def _with_values(where: ColumnElement[bool], parameters: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return *where* with the values that its bound parameters will have."""

    def replace(element: Any, **_: Any) -> Any:
        if isinstance(element, BindParameter) and element.key in parameters:
            return bindparam(None, parameters[element.key], type_=element.type, expanding=element.expanding)
        return None

    return visitors.replacement_traverse(where, {}, replace) if parameters else where


def _bound_to_key(where: ColumnElement[bool], primary_key: Sequence[ColumnElement[Any]]) -> list[str] | None:
    """Return the parameters that hold the key, if *where* says ``key = :parameter`` and nothing that widens it."""
    names: dict[ColumnElement[Any], str] = {}
    parts = where.clauses if isinstance(where, BooleanClauseList) and where.operator is operators.and_ else [where]
    for part in parts:
        if (
            isinstance(part, BinaryExpression)
            and part.operator is operators.eq
            and isinstance(part.right, BindParameter)
        ):
            names[part.left] = part.right.key
    return [names[column] for column in primary_key] if all(column in names for column in primary_key) else None


def _check_count(sending: Sending, read: int, result: CursorResult[Any]) -> None:
    """
    Refuse a result that speaks of more rows than were read.

    At READ COMMITTED, rows that another transaction has committed between
    the two statements are changed without having been read.
    """
    if not sending.is_many and result.rowcount > read:
        raise changed_unread(result.rowcount - read, sending)
    counts = isinstance(sending.statement, Update) and not sending.is_many and not sending.counts_late
    if counts and 0 <= result.rowcount < read:
        raise other_rows(sending)


# --- INSERT ----------------------------------------------------------------------------------------------------------


def _read_before_insert(sending: Sending, audited: AuditedTable) -> Pending:
    insert: Any = sending.statement
    prefixes = {str(prefix).upper() for prefix, _ in insert._prefixes}
    if prefixes == {"IGNORE"} and sending.connection.dialect.insert_returning:
        return _insert(sending, audited, ignores_conflicts=True)
    if any("OR " in prefix or prefix == "IGNORE" for prefix in prefixes):
        raise UncapturedStatementError(
            "An INSERT that resolves conflicts by a prefix",
            audited.table.name,
            "use insert().on_conflict_do_update(), or on_duplicate_key_update()",
        )
    conflict = getattr(insert, "_post_values_clause", None)
    if conflict is None:
        return _insert(sending, audited, ignores_conflicts=False)
    if isinstance(conflict, OnDuplicateClause) or hasattr(conflict, "update_values_to_set"):
        return read_before_upsert(sending, audited, conflict)
    return _insert(sending, audited, ignores_conflicts=True)


def _insert(sending: Sending, audited: AuditedTable, *, ignores_conflicts: bool) -> Pending:
    """Find out where the keys of the new rows will be told."""
    statement: Any = sending.statement

    def pending(sent: UpdateBase, keys_of: Callable[[CursorResult[Any]], Iterable[Key]]) -> Pending:
        tell_inserted = partial(_tell_inserted, sending, audited, keys_of)
        return Pending(sent, tell_inserted, is_certain=_needs_user(audited) and not ignores_conflicts)

    columns = [audited.table.columns[key] for key in audited.primary_key]
    if sending.returned:
        places = _places(columns, sending.returned)
        if places is None:
            raise UncapturedStatementError(
                "An INSERT with a RETURNING that leaves out the primary key", audited.table.name, "return the key, too"
            )
        return pending(statement, partial(_peek, places))
    has_many_values = statement.select is not None or sending.state._multi_parameters
    if not sending.is_many and not has_many_values and not statement._inline:
        return pending(statement, _only_key)
    known = all(
        all(column.key in parameters for parameters in sending.parameters)
        or (column.default is not None and (column.default.is_callable or column.default.is_scalar))
        for column in columns
    )
    if statement._return_defaults or (known and not has_many_values and not ignores_conflicts):
        return pending(statement, _all_keys)
    dialect = sending.connection.dialect
    if not (dialect.insert_executemany_returning if sending.is_many else dialect.insert_returning):
        raise UncapturedStatementError(
            "An INSERT of several rows whose keys the database makes, and can't return,",
            audited.table.name,
            "give the keys, or add mapped objects to the session and flush",
        )
    return pending(statement.returning(*columns), _taken)


def _tell_inserted(
    sending: Sending,
    audited: AuditedTable,
    keys_of: Callable[[CursorResult[Any]], Iterable[Key]],
    result: CursorResult[Any],
) -> Batches:
    for chunk in batched(keys_of(result), ROWS_PER_SELECT):
        new = read_images(sending.connection, audited, None, chunk, sending.options)
        images = [inserted_image(new, audited, key) for key in chunk]
        yield [change for image in images for change in audited.changes(Operation.INSERT, {}, image)]


def _only_key(result: CursorResult[Any]) -> list[Key]:
    """The key of the one row, if it was inserted."""
    return [_complete(tuple(result.inserted_primary_key or (None,)))] if result.rowcount != 0 else []


def _all_keys(result: CursorResult[Any]) -> list[Key]:
    """The keys of all rows, which the parameters or SQLAlchemy knew."""
    return [_complete(tuple(row or (None,))) for row in result.inserted_primary_key_rows or ()]


def _complete(key: Key) -> Key:
    if None in key:
        raise CaptureError(
            "The key of an inserted row isn't known, so the row can't be recorded; give the key, or add a mapped "
            "object to the session and flush."
        )
    return key


def _places(columns: Sequence[Any], returned: Sequence[Any]) -> list[int] | None:
    """Return where the primary key stands among the columns of a RETURNING."""
    found = {
        element.key: place
        for place, element in enumerate(returned)
        if getattr(element, "table", None) is columns[0].table
    }
    return [found[column.key] for column in columns] if all(column.key in found for column in columns) else None


def _peek(places: Sequence[int], result: CursorResult[Any]) -> list[Key]:
    """The keys in the user's RETURNING, whose rows are put back for the user."""
    rows = result.fetchall()
    # What SQLAlchemy does itself when it looks at a RETURNING before the user.
    result._rewind(rows)
    return [tuple(row[place] for place in places) for row in rows]


def _taken(result: CursorResult[Any]) -> list[Key]:
    """The keys in our own RETURNING, of which the result shows nothing."""
    rows: Any = result.fetchall()
    hidden: Any = result
    hidden._metadata = hidden._no_result_metadata
    if hidden.context.executemany and not hidden.dialect.supports_sane_multi_rowcount:
        hidden.context._rowcount = -1
    else:
        hidden.context._rowcount = len(rows)
    return [tuple(row) for row in rows]


# --- what stands around ----------------------------------------------------------------------------------------------


def _read_dependents(sending: Sending, table: Table) -> CascadedRows:
    """Read the rows of other tables that the database will change by itself."""
    effect = None if isinstance(sending.statement, Delete) else _set_columns(sending, table)
    primary_key = [sending.target.columns[column.key] for column in table.primary_key]
    criteria = _criteria(sending, primary_key)
    return read_cascaded(sending.connection, table, sending.target, criteria, effect, sending.options)


def _set_columns(sending: Sending, table: Table) -> frozenset[str]:
    """Return the keys of the columns that an UPDATE sets."""
    named = {getattr(name, "key", name) for name in sending.state._dict_parameters or ()}
    return frozenset((named | sending.parameters[0].keys()) & {*table.columns.keys()})


_MYSQL_LIMITS: Final = ("mysql_limit", "mariadb_limit")

_UNREPEATABLE: Final = frozenset({"random", "rand", "gen_random_uuid", "clock_timestamp"})


def _refuse_unrepeatable(statement: UpdateBase, table: Table, *, many: bool) -> None:
    """Refuse a criterion that finds other rows when it is asked again; one with a subquery does after each of many."""
    given: Mapping[str, Any] = getattr(statement, "dialect_kwargs", {})
    limit = getattr(statement, "_post_criteria_clause", None)
    if limit is not None or any(given.get(each) is not None for each in _MYSQL_LIMITS):
        raise UncapturedStatementError("A LIMIT", table.name, "read the keys first, and use them")
    where: Any = getattr(statement, "whereclause", None)
    for element in visitors.iterate(where) if where is not None else ():
        if isinstance(element, FunctionElement) and getattr(element, "name", "").lower() in _UNREPEATABLE:
            raise UncapturedStatementError(
                f"A criterion with {element.name}()", table.name, "read the keys first, and use them"
            )
        if many and isinstance(element, (ScalarSelect, SelectBase)):
            raise UncapturedStatementError(
                "A criterion with a subquery, for many parameter sets,", table.name, "execute it once for each of them"
            )


def _refuse_other_tables(statement: Update, table: Table) -> None:
    """Refuse an UPDATE that sets columns of another tracked table, too, as MySQL's can."""
    values: Any = statement._values or ()
    for named in values:
        column = named.__clause_element__() if hasattr(named, "__clause_element__") else named
        other = getattr(column, "table", None)
        if isinstance(other, Table) and other.key != table.key and tracking_in_session(other) is not None:
            raise UncapturedStatementError("An UPDATE of several tables", other.name, "write to one table at a time")


def _refuse_hidden_tables(statement: UpdateBase) -> None:
    """Refuse an UPDATE or DELETE of a join, as MySQL knows it, of which a tracked table is a part."""
    name = getattr(statement.table, "name", None)
    if isinstance(statement.table, TableClause) and any(
        table.name == name and tracking_in_session(table) is not None for table in list(all_tracked())
    ):
        raise UncapturedStatementError("DML of a table()", str(name), "use the Table, or the class, that is tracked")
    for element in visitors.iterate(statement.table):
        if isinstance(element, Table) and tracking_in_session(element) is not None:
            raise UncapturedStatementError("DML of a join", element.name, "write to one table at a time")
