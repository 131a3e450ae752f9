"""
The capture of flushes: what the unit of work writes.

The mapper events say exactly which rows are written, in the order of the SQL.
The old image of a row is taken when the first statement after its
``before_update`` or ``before_delete`` is about to be sent: all listeners have
run, nothing has been written. Old values that nobody has in memory are read
then, with one SELECT per table. The new image is taken in ``after_flush``.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Column, Connection, NestedTransaction, Table
from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, RelationshipProperty, Session, UOWTransaction
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import NO_VALUE

from sqlaudit.capture.division import tracking_in_session
from sqlaudit.capture.rows import (
    AuditedTable,
    Image,
    ParameterSets,
    RowChange,
    audited_table,
    inserted_image,
    read_images,
)
from sqlaudit.codec import JSON_NULL
from sqlaudit.context import AuditContext
from sqlaudit.exceptions import CaptureError
from sqlaudit.tracking import Tracking, tracked_tables
from sqlaudit.types import Operation

__all__ = [
    "Flush",
    "begin_flush",
    "certain_changes",
    "changes_of",
    "current_flush",
    "end_flush",
    "foresee",
    "take_old_images",
]


_FLUSH_KEY: Final = "sqlaudit.flush"


# --- a mapper's rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """A column that a change may need, and where a mapped object keeps it."""

    key: str
    attribute: str | None
    """None: the mapper leaves the column out."""
    identity: int | None
    """Its place in the identity key."""
    volatile: bool
    """An UPDATE may change it although nobody assigned it."""
    generated: bool
    """An INSERT may fill it although nobody assigned it."""
    evaluates_none: bool
    """None, assigned, is the JSON value null; not SQL NULL."""
    is_key: bool
    """It is a part of the primary key or of the resource id, or names the actor."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows that one mapper's objects have in one tracked table."""

    table: Table
    tracking: Tracking
    fields: tuple[_Field, ...]
    primary_key: tuple[_Field, ...]
    always: tuple[_Field, ...]
    """Those of *fields* that any change of the row may need."""
    by_attribute: Mapping[str, tuple[_Field, ...]]
    """The others, which a change needs when their attribute is set."""
    key_attributes: frozenset[str]
    attributes: frozenset[str]
    """All column attributes of the mapper, tracked or not: an UPDATE needs one of them to have changed."""
    post_updates: bool
    """Foreign keys of the table may be set by an UPDATE of their own, after the others."""


_plans: WeakKeyDictionary[Mapper[Any], tuple[_Rows, ...]] = WeakKeyDictionary()


def _rows_of(mapper: Mapper[Any]) -> tuple[_Rows, ...]:
    """Return where *mapper*'s objects keep what is tracked, base tables first."""
    plan = _plans.get(mapper, ())
    # A table may be tracked later, or get the columns of another subclass.
    if not plan or any(tracking_in_session(rows.table) is not rows.tracking for rows in plan):
        plan = _plans[mapper] = tuple(
            _plan(mapper, table, tracking)
            for table, tracking in tracked_tables(mapper)
            if tracking_in_session(table) is not None
        )
    return plan


def _plan(mapper: Mapper[Any], table: Table, tracking: Tracking) -> _Rows:
    # Mapper.column_attrs would be remembered, and no longer configure the mappers that come later.
    properties = list(mapper.iterate_properties)
    by_column: dict[Any, str] = {
        column: attribute.key
        for attribute in properties
        if isinstance(attribute, ColumnProperty)
        for column in attribute.columns
    }
    identity = {by_column[column]: place for place, column in enumerate(mapper.primary_key)}
    post_updated = {
        column
        for relationship in properties
        if isinstance(relationship, RelationshipProperty) and relationship.post_update
        for pair in relationship.local_remote_pairs
        for column in pair
    }

    def describe(key: str, column: Column[Any]) -> _Field:
        attribute = by_column.get(column)
        return _Field(
            key=key,
            attribute=attribute,
            identity=identity.get(attribute) if attribute is not None else None,
            # A Computed is its column's server_default and server_onupdate.
            volatile=column.onupdate is not None
            or column.server_onupdate is not None
            or column is mapper.version_id_col
            or column in post_updated,
            generated=column.server_default is not None
            or column.identity is not None
            or (attribute is None and column.default is not None),
            evaluates_none=bool(getattr(column.type, "should_evaluate_none", False)),
            is_key=column.primary_key or key in tracking.key_columns,
        )

    needed = {*tracking.recorded, *tracking.key_columns}
    fields = {key: describe(key, column) for key, column in table.columns.items() if key in needed}
    return _Rows(
        table=table,
        tracking=tracking,
        fields=tuple(fields.values()),
        always=tuple(field for field in fields.values() if field.volatile or field.is_key),
        by_attribute=_by_attribute(fields.values()),
        primary_key=tuple(fields[column.key] for column in table.primary_key),
        key_attributes=frozenset(field.attribute for field in fields.values() if field.is_key and field.attribute),
        attributes=frozenset(by_column.values()),
        post_updates=any(column in post_updated for column in table.columns),
    )


def _by_attribute(fields: Iterable[_Field]) -> dict[str, tuple[_Field, ...]]:
    found: dict[str, tuple[_Field, ...]] = {}
    for field in fields:
        if field.attribute is not None and not field.volatile and not field.is_key:
            found[field.attribute] = (*found.get(field.attribute, ()), field)
    return found


# --- one flush -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Before:
    """What is known of a row before the first statement that may change it."""

    primary_key: tuple[Any, ...]
    remembered: dict[str, Any]
    """What is in memory, by column key; Python values."""
    missing: frozenset[str]
    """What is needed, and not in memory, or not for sure."""
    whole: bool
    """All recorded columns are needed: the row goes, or its key becomes another."""
    fields: Sequence[_Field]
    """What may change."""
    read: Image | None = None
    """The *missing* columns, read; None if there is nothing missing, or no such row."""

    def concerns(self, key: str) -> bool:
        """Return whether the column was in memory, or is about to be assigned."""
        return key in self.remembered or key in self.missing

    def may_differ(self, key: str, value: object) -> bool:
        """Return whether *value*, now in memory, may be another than before."""
        return key in self.missing or (key in self.remembered and self.remembered[key] is not value)

    @property
    def is_gone(self) -> bool:
        """There is no such row any more: another transaction has deleted it."""
        return bool(self.missing) and self.read is None


_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class _Write:
    """One object on its way through a flush."""

    operation: Operation
    state: InstanceState[Any]
    mapper: Mapper[Any]
    connection: Connection
    row: InstanceState[Any]
    """The state that knows what the row held: a deleted one if *state*, new under the same key, takes over its row."""
    before: Mapping[Table, _Before] = dataclasses.field(default_factory=lambda: _NOTHING)
    """Empty if no statement could have changed the rows."""


@dataclass(slots=True, eq=False)
class _Recorded:
    """What a statement did that was sent within the flush, but not for a mapped object: rows of secondary tables."""

    connection: Connection
    changes: Sequence[RowChange]


@dataclass(slots=True, eq=False)
class Flush:
    """The tracked rows of one flush."""

    context: UOWTransaction
    locks_rows: bool = False
    """Old values are read and locked, though they may be in memory."""
    acting: AuditContext | None = None
    """Who acts, if it was asked before anything was sent."""
    failure: CaptureError | None = None
    connections: dict[Connection, NestedTransaction | None] = dataclasses.field(default_factory=dict)
    """The savepoint that each connection was in when the first object was announced."""
    coming: list[_Write] = dataclasses.field(default_factory=list)
    """Announced by mapper events; no statement has been sent since."""
    announced: dict[InstanceState[Any], _Write] = dataclasses.field(default_factory=dict)
    done: list["_Write | _Recorded"] = dataclasses.field(default_factory=list)
    """What was sent, in the order of the statements: of announced objects, and beside them."""
    old_images: dict[tuple[Table, str], Image] = dataclasses.field(default_factory=dict)
    """What was read, by row; also for rows that are not announced yet."""
    tables: set[Table] = dataclasses.field(default_factory=set)
    """The tracked tables in which objects that were announced have rows."""
    audited: dict[tuple[Table, str], AuditedTable] = dataclasses.field(default_factory=dict)
    switched: dict[tuple[Table, str], Image] = dataclasses.field(default_factory=dict)
    """What rows hold that an object has taken over; another may take them over again, with a warning of SQLAlchemy."""
    gone: set[tuple[Table, str]] = dataclasses.field(default_factory=set)
    """Rows that were gone before the DELETE of their objects: by another transaction, or by a recorded cascade."""
    foreseen: set[Table] = dataclasses.field(default_factory=set)
    touched: set[Table] = dataclasses.field(default_factory=set)
    """Written by statements of listeners: what objects remember of their rows may be out of date."""
    silenced: set[Connection] = dataclasses.field(default_factory=set)
    """Where triggers leave rows to the session until the flush is over."""
    plans: dict[Mapper[Any], tuple[_Rows, ...]] = dataclasses.field(default_factory=dict)
    """Of the mappers whose objects were announced."""
    _post_updated: set[Table] | None = None
    _has_deletes: bool | None = None

    def announce(
        self, operation: Operation, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
    ) -> None:
        """Note that an object will be among the next statements, as its mapper event says."""
        row = state
        if operation is Operation.INSERT and self._deletes():
            deleted = self._deleted_under(state, mapper)
            if deleted is not None:
                # "Row switch": SQLAlchemy will send one UPDATE, not a DELETE and an INSERT.
                operation, row = Operation.UPDATE, deleted
        write = _Write(operation, state, mapper, connection, row)
        self.announced[state] = write
        if mapper not in self.plans:
            self.tables.update(rows.table for rows in self.rows_of(mapper))
        if operation is not Operation.INSERT:
            self.coming.append(write)

    def rows_of(self, mapper: Mapper[Any]) -> tuple[_Rows, ...]:
        """Return where *mapper*'s objects keep what is tracked, base tables first."""
        plan = self.plans.get(mapper)
        if plan is None:
            plan = self.plans[mapper] = _rows_of(mapper)
        return plan

    def confirm(self, state: InstanceState[Any]) -> None:
        """Note that the statements of an object that was announced have been sent."""
        self.done.append(self.announced[state])

    def skip(self, table: Table, row_key: str) -> None:
        """Note that the DELETE of an object finds its row gone."""
        self.gone.add((table, row_key))

    def check_deleted(self, table: Table | None, parameters: ParameterSets, rowcount: int) -> None:
        """
        Compare what a DELETE of mapped objects found with the rows that it named.

        If some were gone, nobody knows which: the flush fails, unless
        SQLAlchemy itself has something to say about stale rows.
        """
        if table is None or self.locks_rows or not 0 <= rowcount < len(parameters):
            return
        audited = next(each for (known, _), each in self.audited.items() if known is table)
        row_keys = {audited.row_key(tuple(each[key] for key in audited.primary_key)) for each in parameters}
        if rowcount == 0:
            self.gone.update((table, row_key) for row_key in row_keys)
            return
        self.failure = CaptureError(
            f"{len(parameters) - rowcount} of {len(parameters)} rows of {table} that a flush deletes had been deleted "
            f"by another transaction, and nobody knows which; roll back, or let lock_rows=True find out."
        )

    def collects(self, connection: Connection) -> bool:
        """
        Return whether what a statement beside the flush's own does is told with them.

        Before the unit of work has begun, and in a savepoint of a listener's, it is recorded at once.
        """
        return connection in self.connections and connection.get_nested_transaction() is self.connections[connection]

    def add(self, connection: Connection, table: Table | None, changes: Sequence[RowChange]) -> None:
        """Note what a statement did that was sent beside those of the mapped objects."""
        if table is not None:
            self.touched.add(table)
        self.done.append(_Recorded(connection, changes))

    def audited_table(self, rows: _Rows, connection: Connection) -> AuditedTable:
        """Return the table of *rows* as *connection* sees it."""
        known = self.audited.get((rows.table, connection.dialect.name))
        if known is None:
            known = audited_table(rows.table, rows.tracking, connection.dialect)
            self.audited[rows.table, connection.dialect.name] = known
        return known

    def expects(self, table: Table) -> bool:
        """Return whether a statement of a mapper that writes *table* is for objects that the flush knows of."""
        # A post_update before a DELETE comes before anything is announced.
        return table in self.tables or (tracking_in_session(table) is not None and table in self.post_updated())

    def post_updated(self) -> set[Table]:
        """Return the tables in which UPDATEs that no event announces may set foreign keys of this flush's objects."""
        if self._post_updated is None:
            mappers = {state.mapper for state in self.context.states}
            self._post_updated = {rows.table for each in mappers for rows in _rows_of(each) if rows.post_updates}
        return self._post_updated

    def _deletes(self) -> bool:
        """Return whether the flush deletes anything at all."""
        if self._has_deletes is None:
            # What is deleted is known before the first mapper event.
            self._has_deletes = any(is_delete for is_delete, _ in self.context.states.values())
        return self._has_deletes

    def _deleted_under(self, state: InstanceState[Any], mapper: Mapper[Any]) -> InstanceState[Any] | None:
        """Return the object that this flush deletes, and whose key the new *state* has."""
        session = state.session
        instance = None if session is None else session.identity_map.get(mapper.identity_key_from_instance(state.obj()))
        if instance is None:
            return None
        deleted = instance_state(instance)
        is_delete, _ = self.context.states.get(deleted, (False, False))
        return deleted if is_delete else None


def begin_flush(session: Session, context: UOWTransaction, *, locks_rows: bool) -> Flush:
    """Make room for what the flush of *session* that begins will write."""
    flush = session.info[_FLUSH_KEY] = Flush(context, locks_rows)
    return flush


def current_flush(session: Session) -> Flush | None:
    """Return the flush that *session* is in."""
    flush: Flush | None = session.info.get(_FLUSH_KEY)
    # A flush that had nothing to do, or failed in before_flush, ends without an event.
    return flush if flush is not None and session._flushing else None  # noqa: SLF001 (said nowhere else)


def end_flush(session: Session) -> None:
    """Drop what is known of a flush that is over, or has failed."""
    session.info.pop(_FLUSH_KEY, None)


def certain_changes(session: Session) -> Iterator[tuple[Mapper[Any], str]]:
    """
    Yield the mapper and label of what *session*'s next flush is known to change, before it has begun.

    What cascades, listeners and expired attributes will add isn't known yet. Rows that name their actor are left out.
    """
    deleted = session.deleted
    for instance in (*session.new, *deleted, *session.dirty):
        state = instance_state(instance)
        for rows in _rows_of(state.mapper):
            if rows.tracking.user_key is not None:
                continue
            if state.key is None or instance in deleted or _is_changed(rows, state):
                yield state.mapper, rows.tracking.label
                break


def _is_changed(rows: _Rows, state: InstanceState[Any]) -> bool:
    committed, current = state.committed_state, state.dict
    return any(
        field.attribute in committed
        and committed[field.attribute] is not NO_VALUE
        and _differ(committed[field.attribute], current.get(field.attribute))
        for field in rows.fields
    )


def _differ(one: object, other: object) -> bool:
    try:
        return (one == other) is not True
    except Exception:  # noqa: BLE001 (a user's type, whose values can't be compared)
        return True


# --- before the SQL --------------------------------------------------------------------------------------------------


def take_old_images(flush: Flush) -> None:
    """
    Take the old images of the rows that were announced; a statement of the flush is about to be sent.

    At most one SELECT per table, and none if everything is in memory.
    """
    coming, flush.coming = flush.coming, []
    unread: dict[tuple[Connection, Table], list[_Before]] = {}
    audited: dict[Table, AuditedTable] = {}
    for write in coming:
        known: dict[Table, _Before] = {}
        write.before = known
        for rows in flush.rows_of(write.mapper):
            audited[rows.table] = flush.audited_table(rows, write.connection)
            unsure = flush.locks_rows or rows.table in flush.touched
            before = _remember(rows, audited[rows.table], write.row, _is_whole(rows, write), unsure)
            if before is None:
                continue
            known[rows.table] = before
            if before.missing:
                unread.setdefault((write.connection, rows.table), []).append(before)
    for (connection, table), befores in unread.items():
        _read_old(flush, connection, audited[table], befores)


def foresee(flush: Flush, connection: Connection, table: Table) -> None:
    """
    Read what is not in memory of rows that the flush will delete, before an UPDATE of them that no event announces.

    A ``post_update`` relationship sets foreign keys to NULL before the rows go.
    """
    if table not in flush.post_updated() or table in flush.foreseen:
        return
    flush.foreseen.add(table)
    for state in list(flush.context.states):
        for rows in _rows_of(state.mapper):
            if rows.table is table and rows.post_updates:
                audited = flush.audited_table(rows, connection)
                missed = list(_not_announced(flush, audited))
                if missed:
                    _read_old(flush, connection, audited, missed)
                return


def _is_whole(rows: _Rows, write: _Write) -> bool:
    """Return whether all of the row must be known: it goes, or its key becomes another."""
    if write.operation is Operation.DELETE or write.row is not write.state:
        return True
    committed = write.state.committed_state
    if rows.key_attributes.isdisjoint(committed):
        return False
    current = write.state.dict
    return any(
        field.attribute in committed and _differ(committed[field.attribute], current.get(field.attribute))
        for field in rows.fields
        if field.is_key
    )


def _remember(
    rows: _Rows, audited: AuditedTable, state: InstanceState[Any], whole: bool, locks_rows: bool
) -> _Before | None:
    """
    Return what *state* knows of its row before the flush; None if no UPDATE will be sent for it.

    With *locks_rows* nothing that is needed counts as known: another
    transaction may have changed the row since it was loaded.
    """
    committed: dict[Any, Any] = state.committed_state
    current: dict[Any, Any] = state.dict
    codecs = audited.codecs
    if not whole and not rows.post_updates and rows.attributes.isdisjoint(committed):
        return None
    fields = rows.fields if whole or rows.post_updates else _may_change(rows, committed)
    identity = state.key[1] if state.key is not None else ()
    remembered: dict[str, Any] = {}
    missing: set[str] = set()
    for field in fields:
        key, attribute = field.key, field.attribute
        if field.identity is not None:
            remembered[key] = identity[field.identity]
            continue
        pending = attribute in committed
        value: Any = committed[attribute] if pending else current.get(attribute, NO_VALUE)
        if value is not NO_VALUE:
            remembered[key] = value
            if not locks_rows and (codecs[key].is_plain(value) or codecs[key].is_exact_in_memory(value)):
                continue
        if whole or pending or field.volatile or field.is_key:
            missing.add(key)
    primary_key = tuple(remembered[field.key] for field in rows.primary_key)
    return _Before(primary_key, remembered, frozenset(missing), whole, fields)


def _may_change(rows: _Rows, committed: Iterable[str]) -> list[_Field]:
    """Return the columns that an UPDATE may change when these attributes were set."""
    return [*rows.always, *(field for name in committed for field in rows.by_attribute.get(name, ()))]


def _read_old(flush: Flush, connection: Connection, audited: AuditedTable, befores: list[_Before]) -> None:
    """Read what is *missing* of rows of one table, together with what the rest of the flush will miss of it."""
    keys = {before: audited.row_key(before.primary_key) for before in befores}

    def known(before: _Before) -> Image | None:
        image = flush.old_images.get((audited.table, keys[before]))
        return image if image is not None and before.missing <= image.keys() else None

    unknown = [before for before in befores if known(before) is None] if flush.old_images else befores
    if unknown:
        together = [*unknown, *_not_announced(flush, audited)]
        columns = frozenset().union(*(before.missing for before in together))
        rows = dict.fromkeys(before.primary_key for before in together)
        for key, image in read_images(connection, audited, columns, rows).items():
            flush.old_images[audited.table, key] = image
    for before in befores:
        before.read = known(before)


def _not_announced(flush: Flush, audited: AuditedTable) -> Iterator[_Before]:
    """Yield what is missing of the rows of a table that the flush will come to later."""
    for state, (is_delete, list_only) in flush.context.states.items():
        if list_only or state.key is None or state in flush.announced:
            continue
        for rows in _rows_of(state.mapper):
            if rows.table is audited.table:
                before = _remember(rows, audited, state, is_delete, flush.locks_rows)
                if before is not None and before.missing:
                    yield before


# --- after the SQL ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _After:
    """What a row of one write holds now."""

    write: _Write
    audited: AuditedTable
    new: Image
    """Of an update, what may have changed."""
    unread: set[str]
    """What may have changed, and is not in memory."""
    primary_key: tuple[Any, ...]
    is_gone: bool = False


def changes_of(flush: Flush) -> dict[Connection, list[RowChange]]:
    """
    Return what the flush did, in the order of the SQL, by the connection that did it.

    Called in ``after_flush``: states still know what they were, and already
    what they are. Values that only the database knows are read, with one
    SELECT per table.
    """
    if flush.failure is not None:
        raise flush.failure
    told: list[tuple[Connection, Sequence[RowChange]]] = []
    waiting: list[tuple[int, _After]] = []
    for write in _in_sql_order(flush.done):
        if isinstance(write, _Recorded):
            told.append((write.connection, write.changes))
            continue
        if not write.before and write.operation is not Operation.INSERT:
            continue
        for after in _afters(flush, write):
            # A row that an object takes over may be taken over again: in this order.
            if after.unread or (waiting and write.row is not write.state):
                waiting.append((len(told), after))
                told.append((write.connection, ()))
            else:
                told.append((write.connection, _row_changes(flush, after)))
    _read_new([after for _, after in waiting if after.unread])
    for place, after in waiting:
        told[place] = (after.write.connection, _row_changes(flush, after))

    changes: dict[Connection, list[RowChange]] = {}
    for connection, found in told:
        if found:
            changes.setdefault(connection, []).extend(found)
    return changes


def _read_new(afters: Sequence[_After]) -> None:
    """Add to each new image what is unread of it."""
    by_table: dict[tuple[Connection, AuditedTable], list[_After]] = {}
    for after in afters:
        by_table.setdefault((after.write.connection, after.audited), []).append(after)
    for (connection, audited), together in by_table.items():
        columns = frozenset().union(*(after.unread for after in together))
        images = read_images(connection, audited, columns, dict.fromkeys(after.primary_key for after in together))
        for after in together:
            if after.write.operation is Operation.INSERT:
                image = inserted_image(images, audited, after.primary_key)
            else:
                # An UPDATE of a row that another transaction has deleted, which not every driver counts.
                image = images.get(audited.row_key(after.primary_key), {})
                after.is_gone = not image
            after.new.update((key, image[key]) for key in after.unread if key in image)


def _in_sql_order(done: list[_Write | _Recorded]) -> Iterable[_Write | _Recorded]:
    """Return what was sent in the order of the SQL: of one mapper's objects, the UPDATEs come before the INSERTs."""

    def batch(write: _Write | _Recorded) -> Any:
        if isinstance(write, _Recorded) or write.operation is Operation.DELETE:
            return None
        return write.mapper.base_mapper

    def is_insert(write: _Write | _Recorded) -> bool:
        return isinstance(write, _Write) and write.operation is Operation.INSERT

    if len({*map(is_insert, done)}) == 1:
        return done
    return (write for _, writes in groupby(done, batch) for write in sorted(writes, key=is_insert))


def _afters(flush: Flush, write: _Write) -> Iterator[_After]:
    """Yield what the rows of an object hold now: those that a statement can have changed."""
    rows_of = flush.rows_of(write.mapper)
    # A subclass' row is deleted before its base's.
    for rows in reversed(rows_of) if write.operation is Operation.DELETE else rows_of:
        before = write.before.get(rows.table)
        if before is None and write.operation is not Operation.INSERT:
            continue
        audited = flush.audited_table(rows, write.connection)
        if write.operation is not Operation.DELETE:
            yield _after(rows, audited, write, before)
        elif before is not None and not (
            flush.gone and (rows.table, audited.row_key(before.primary_key)) in flush.gone
        ):
            yield _After(write, audited, {}, set(), before.primary_key)


def _after(rows: _Rows, audited: AuditedTable, write: _Write, before: _Before | None) -> _After:
    current: dict[Any, Any] = write.state.dict
    codecs = audited.codecs
    new: Image = {}
    unread: set[str] = set()
    for field in rows.fields if before is None else before.fields:
        key = field.key
        value: Any = current.get(field.attribute, NO_VALUE)
        if value is not NO_VALUE:
            if before is not None and (not before.may_differ(key, value) or _is_not_sent(write, field, value)):
                continue
            codec = codecs[key]
            if codec.is_plain(value) and key != audited.made_of_zero:
                new[key] = value
            elif _is_made_by_database(field, audited, value):
                unread.add(key)
            else:
                is_json_null = value is None and field.evaluates_none and codec.json
                new[key] = codec.dump(JSON_NULL if is_json_null else value)
        elif before is None:
            # SQLAlchemy expires what the database has made of an SQL expression.
            if field.generated or field.attribute in write.state.expired_attributes:
                unread.add(key)
            else:
                new[key] = audited.codecs[key].dump(None)
        elif field.volatile or (field.identity is None and before.concerns(key)):
            unread.add(key)
    primary_key = [
        current.get(field.attribute, NO_VALUE) if before is None or field.key in new else before.remembered[field.key]
        for field in rows.primary_key
    ]
    if NO_VALUE in primary_key:
        raise CaptureError(
            f"A new object of {rows.tracking.label} has lost its key within the flush: a listener has rolled back a "
            f"savepoint of the session; use one of the connection, connection.begin_nested()."
        )
    return _After(write, audited, new, unread, tuple(primary_key))


def _is_made_by_database(field: _Field, audited: AuditedTable, value: object) -> bool:
    """Return whether the row may hold another value than the one in memory."""
    if _is_sql(value) or (field.key == audited.made_of_zero and value == 0):
        return True
    return field.identity is None and audited.codecs[field.key].must_be_read(value)


def _is_not_sent(write: _Write, field: _Field, value: object) -> bool:
    """Return whether SQLAlchemy takes *value* for what was loaded, as it does 1 for true, and leaves it out."""
    state, name = write.state, field.attribute
    if write.row is not state or name is None:
        return False
    committed = state.committed_state.get(name, NO_VALUE)
    return committed is not NO_VALUE and state.manager[name].impl.is_equal(value, committed) is True


_NO_SQL: Final = frozenset(
    {type(None), bool, int, float, str, bytes, Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, UUID, dict, list}
)


def _is_sql(value: object) -> bool:
    """Return whether *value* is an expression; a literal() stays in the object, what it becomes is to be read."""
    return type(value) not in _NO_SQL and (isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"))


def _row_changes(flush: Flush, after: _After) -> Sequence[RowChange]:
    write, audited, new = after.write, after.audited, after.new
    before = write.before.get(audited.table)
    if before is None:
        return audited.changes(write.operation, {}, new)
    if before.is_gone or after.is_gone:
        return ()
    codecs, found, remembered = audited.codecs, before.read or {}, before.remembered
    old: Image = {}
    for key in codecs if before.whole else {*new, *audited.tracking.key_columns}:
        if key in found:
            old[key] = found[key]
        elif key in remembered:
            value = remembered[key]
            old[key] = value if type(value) in codecs[key].plain else codecs[key].dump(value)
    if write.row is not write.state:
        row = (audited.table, audited.row_key(after.primary_key))
        old = flush.switched.get(row, old)
        flush.switched[row] = old | new
    return audited.changes(write.operation, old, old | new if new else old)
