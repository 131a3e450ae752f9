"""The triggers of SQLite: one for each row, in the statement that writes it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, Dialect, Table, types as sqltypes
from sqlalchemy.types import TypeDecorator

from sqlaudit._places import schema_of
from sqlaudit.capture.publishing import PUBLISHED
from sqlaudit.capture.rows import AuditedTable
from sqlaudit.capture.triggers.objects import GUARD, DatabaseObject, no_table
from sqlaudit.capture.triggers.sqlite_keys import UniqueKey, row_name, unique_keys
from sqlaudit.capture.triggers.sqlite_values import Encoding, encoding_of, literal, quoted
from sqlaudit.codec import MASK
from sqlaudit.exceptions import CaptureError, TrackingError

__all__ = ["guards", "place_of", "standing", "wanted"]

_EVENTS: Final = ("insert", "update", "delete", "noting_insert", "noting_update", "guard")


def wanted(connection: Connection, tables: Sequence[AuditedTable], trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what should stand for those of *tables* that are in the database, in the order of creation.

    Raises:
        CaptureError: this SQLite is too old.
        TrackingError: SQLite can't write the values of a column, or can't reach the trail from a table.
    """
    _refuse_old(connection)
    for table in (trail, *(audited.table for audited in tables)):
        _own_schema(connection, table)
    yield from (_table(name, definition) for name, definition in _TABLES.items())
    for audited in tables:
        yield from _triggers(_Audited.of(connection, audited, _columns_there(connection, audited), trail))


def guards(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what refuses to update, delete and replace what *trail* holds.

    Raises:
        CaptureError: this SQLite is too old.
        TrackingError: the trail is in another database.
    """
    _refuse_old(connection)
    _own_schema(connection, trail)
    yield _table(PUBLISHED, _TABLES[PUBLISHED])
    key = quoted(trail.columns.id.name)
    conditions = {
        "update": "1",
        "delete": f"NOT EXISTS (SELECT 1 FROM {PUBLISHED} WHERE json_extract(document, '$.retention'))",
        "insert": f"EXISTS (SELECT 1 FROM {quoted(trail.name)} WHERE {key} = NEW.{key})",
    }
    for event, condition in conditions.items():
        name = f"{GUARD}_{event}_{trail.name}"
        yield _trigger(
            trail.name,
            name,
            f"CREATE TRIGGER {quoted(name)}\n"
            f"-- sqlaudit, version 1: the trail is only added to\n"
            f"BEFORE {event.upper()} ON {quoted(trail.name)} FOR EACH ROW\n"
            f"WHEN {condition}\n"
            f"BEGIN\nSELECT RAISE(ABORT, 'the audit trail is append-only; purge_changes() deletes old changes');\nEND",
        )


_OLDEST: Final = (3, 35, 0)
"""MATERIALIZED came with it."""


def _refuse_old(connection: Connection) -> None:
    version = str(connection.exec_driver_sql("SELECT sqlite_version()").scalar_one())
    if tuple(map(int, version.split("."))) < _OLDEST:
        raise CaptureError(
            f"Triggers need SQLite 3.35 or newer with its JSON functions; this one is {version}. Install a Python with a "
            f"newer one, or record with capture=Capture.SESSION."
        )


def place_of(_: Connection, table: Table) -> tuple[str | None, str]:
    """Return schema and name of a table, as those of triggers are: no schema."""
    return None, table.name


def standing(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """Yield what stands there of ours."""
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid").all()
    for kind, name, _, definition in rows:
        if kind == "table" and name in _TABLES:
            yield _table(name, definition)
    triggers = [(name, table, definition) for kind, name, table, definition in rows if kind == "trigger"]
    for place, (name, table, definition) in enumerate(triggers):
        if name.startswith(tuple(f"sqlaudit_{event}_" for event in _EVENTS)):
            later = [other for other in triggers[place + 1 :] if _writes_the_same(*other, table)]
            yield _trigger(table, name, definition + "".join(f"\n-- older than {other}" for other, *_ in later))


def _writes_the_same(name: str, on: str, definition: str, table: str) -> bool:
    """
    Return whether a trigger of the application writes the rows of the table that it fires for.

    SQLite lets the newest trigger go first: ours must be, to see what it writes
    after what it fired for.
    """
    _, _, body = definition.partition("BEGIN")
    return not name.startswith("sqlaudit_") and on == table and re.search(rf"\b{re.escape(table)}\b", body) is not None


# --- the objects -----------------------------------------------------------------------------------------------------

REPLACED: Final = "sqlaudit_replaced"

_TABLES: Final = {
    PUBLISHED: f"""\
CREATE TABLE {PUBLISHED} (
    -- sqlaudit, version 1: what a writer says of itself, while its transaction runs
    one INTEGER PRIMARY KEY CHECK (one = 1),
    document TEXT NOT NULL
)""",
    REPLACED: f"""\
CREATE TABLE {REPLACED} (
    -- sqlaudit, version 1: the rows that a statement may replace, while it runs
    note INTEGER PRIMARY KEY,
    moment REAL NOT NULL,
    source TEXT NOT NULL,
    place,
    heir TEXT,
    resource_id TEXT NOT NULL,
    changed_by TEXT,
    old_values TEXT NOT NULL
)""",
}


def _table(name: str, definition: str) -> DatabaseObject:
    return DatabaseObject(
        kind="table",
        schema=None,
        table=None,
        name=name,
        definition=definition,
        create=definition,
        drop=f"DROP TABLE IF EXISTS {quoted(name)}",
    )


def _trigger(table: str, name: str, definition: str) -> DatabaseObject:
    return DatabaseObject(
        kind="trigger",
        schema=None,
        table=table,
        name=name,
        definition=definition,
        create=definition,
        drop=f"DROP TRIGGER IF EXISTS {quoted(name)}",
        serves=frozenset({(None, table)}),
    )


# --- what is known of a table ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Audited:
    """An audited table as its triggers see it."""

    name: str
    label: str
    trail: Table
    columns: tuple["_Recorded", ...]
    """Those that are recorded, in order."""
    key: tuple["_Recorded", ...]
    """Those that make the resource id."""
    user: "_Recorded | None"
    """The one that names the actor."""
    row: str | None
    """What the table calls its rowid; None if it has none."""
    primary_key: tuple[str, ...]
    uniques: tuple[UniqueKey, ...]

    @classmethod
    def of(cls, connection: Connection, audited: AuditedTable, columns: dict[str, str], trail: Table) -> "_Audited":
        """
        Return what is recorded of a table that has *columns*, by lower name.

        Raises:
            TrackingError: something of it can't be.
        """
        table, tracking, dialect = audited.table, audited.tracking, connection.dialect
        name = columns[""]
        missing = [key for key in tracking.resource_key if table.columns[key].name.lower() not in columns]
        if missing:
            raise TrackingError(
                f"The table {table.fullname} in the database has no column {' and '.join(missing)}, which identifies "
                f"its rows in the trail; migrate it before its triggers are created."
            )
        user = None if tracking.user_key is None else table.columns[tracking.user_key]
        row = row_name(connection, name, columns)
        return cls(
            name,
            tracking.label,
            trail,
            columns=tuple(
                _Recorded.of(table.columns[key], dialect, is_masked=key in tracking.masked)
                for key in tracking.recorded
                # A migration that adds a column, creates the triggers anew when it is there.
                if table.columns[key].name.lower() in columns
            ),
            key=tuple(_Recorded.of(table.columns[key], dialect) for key in tracking.resource_key),
            user=None if user is None or user.name.lower() not in columns else _user_column(user, dialect),
            row=row,
            primary_key=tuple(column.name for column in table.primary_key),
            uniques=tuple(unique_keys(connection, name, [each for lower, each in columns.items() if lower])),
        )


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A column, and how its values are written."""

    key: str
    name: str
    encoding: Encoding

    @classmethod
    def of(cls, column: Column[Any], dialect: Dialect, *, is_masked: bool = False) -> "_Recorded":
        """
        Return how a column is recorded.

        Raises:
            TrackingError: SQLite can't write its values.
        """
        if is_masked:
            return cls(column.key, column.name, _MASKED)
        try:
            encoding = encoding_of(column.type, dialect)
        except LookupError as error:
            raise TrackingError(
                f"{column.table.fullname}.{column.key} is of type {column.type!r}, whose values triggers of SQLite "
                f"can't write as the trail holds them; record the table with capture=Capture.SESSION, leave the field "
                f"out with exclude_fields, or withhold its values with masked_fields."
            ) from error
        return cls(column.key, column.name, encoding)

    def of_row(self, row: str) -> str:
        """Return the column of OLD, NEW or an alias."""
        return f"{row}.{quoted(self.name)}"

    def json(self, row: str) -> str:
        """Return its value as JSON text."""
        return self.encoding.json(self.of_row(row))

    def text(self, row: str) -> str:
        """Return its value as the text that a resource id is."""
        if self.encoding.is_as_it_is:
            return f"CASE WHEN typeof({self.of_row(row)}) = 'text' THEN {self.of_row(row)} ELSE {self.json(row)} END"
        return (
            f"(SELECT CASE WHEN document LIKE '\"%' THEN json_extract(document, '$') ELSE document END "
            f"FROM (SELECT {self.json(row)} AS document))"
        )


_MASKED: Final = Encoding(lambda _: literal(json.dumps(MASK, separators=(",", ":"))))


def _user_column(column: Column[Any], dialect: Dialect) -> _Recorded:
    """Return the column that names the actor, of whose values SQLite knows what `str` makes of them."""
    type_: Any = column.type.dialect_impl(dialect) if not isinstance(column.type, TypeDecorator) else column.type
    while isinstance(type_, TypeDecorator) and type(type_).process_result_value is TypeDecorator.process_result_value:
        type_ = type_.load_dialect_impl(dialect)
    is_text = isinstance(type_, (sqltypes.Integer, sqltypes.String, sqltypes.Uuid))
    if not is_text or getattr(type_, "enum_class", None) is not None:
        raise TrackingError(
            f"user_id_field names {column.table.fullname}.{column.key}, and SQLite can't say what Python makes of its "
            f"values; let it be a column of integers, texts or UUIDs, or record the table with capture=Capture.SESSION."
        )
    return _Recorded.of(column, dialect)


def _own_schema(connection: Connection, table: Table) -> None:
    schema = schema_of(connection, table)
    if schema not in (None, "main"):
        raise TrackingError(
            f"The table {table.name} is in the attached database {schema}, and triggers of SQLite don't write into "
            f"another database than their table's; keep table and trail in the main one, or record the table with "
            f"capture=Capture.SESSION."
        )


def _columns_there(connection: Connection, audited: AuditedTable) -> dict[str, str]:
    """
    Return the names of a table's columns by lower name, and that of the table as "".

    Raises:
        TrackingError: it is a view, or temporary.
    """
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?)"
    name = connection.exec_driver_sql(query, (audited.table.name,)).scalar()
    if name is None:
        raise no_table(audited.table)
    names = connection.exec_driver_sql("SELECT name FROM pragma_table_xinfo(?)", (name,)).scalars()
    return {"": str(name)} | {str(each).lower(): str(each) for each in names}


# --- the triggers ----------------------------------------------------------------------------------------------------


def _triggers(audited: _Audited) -> Iterator[DatabaseObject]:
    yield _made(
        audited,
        "noting_insert",
        "notes the rows that inserts may replace",
        "BEFORE INSERT",
        _noting(audited),
        _meets(audited),
    )
    yield _made(
        audited,
        "noting_update",
        "notes the rows that updates may replace",
        "BEFORE UPDATE",
        _noting(audited, is_update=True),
        _is_moved(audited),
    )
    replaced = [_record_replaced(audited), *_forget_replaced(audited)]
    # The rows that it replaced went with it.
    transaction = f"CASE WHEN {_has_replaced(audited)} THEN {_last(audited.trail, 'transaction_id')} END"
    insert = _record_insert(audited, transaction)
    yield _made(audited, "insert", "records the inserts", "AFTER INSERT", [replaced[0], insert, *replaced[1:]])
    yield _made(
        audited,
        "update",
        "records the updates",
        "AFTER UPDATE",
        [_forget(audited), *replaced, *_record_update(audited)],
    )
    delete = [_forget(audited), _record_delete(audited)]
    yield _made(audited, "delete", "records the deletes", "AFTER DELETE", delete)


def _made(
    audited: _Audited, event: str, does: str, when: str, statements: Sequence[str], only: str | None = None
) -> DatabaseObject:
    name = f"sqlaudit_{event}_{audited.name}"
    about = " ".join(f"{does} of {audited.name} as {audited.label}".split())
    conditions = [_is_audible(audited), *([] if only is None else [only])]
    body = "".join(f"{statement};\n" for statement in statements)
    return _trigger(
        audited.name,
        name,
        f"CREATE TRIGGER {quoted(name)}\n"
        f"-- sqlaudit, version 1: {about}\n"
        f"{when} ON {quoted(audited.name)} FOR EACH ROW\n"
        f"WHEN {_joined(conditions, ' AND ')}\n"
        f"BEGIN\n{body}END",
    )


def _is_audible(audited: _Audited) -> str:
    return (
        f"NOT EXISTS (SELECT 1 FROM {PUBLISHED} AS published WHERE published.document LIKE '%\"by_session\":%' AND EXISTS "
        f"(SELECT 1 FROM json_each(published.document, '$.by_session') AS label WHERE label.value = {literal(audited.label)}))"
    )


def _record_update(audited: _Audited) -> Iterator[str]:
    is_same_key = f"{_key(audited, 'OLD')} = {_key(audited, 'NEW')}"
    moved = [f"{each.of_row('OLD')} IS NOT {each.of_row('NEW')}" for each in audited.key]
    images: list[str] = []
    olds: list[str] = []
    news: list[str] = []
    for number, each in enumerate(audited.columns):
        old, new = each.of_row("OLD"), each.of_row("NEW")
        differs = f"{old} COLLATE BINARY IS NOT {new}"
        images.append(f"CASE WHEN {differs} THEN {each.json('OLD')} END AS o{number}")
        images.append(f"CASE WHEN {differs} THEN {each.json('NEW')} END AS n{number}")
        changed = f"o{number} IS NOT NULL"
        if not each.encoding.has_one_form:
            changed = f"o{number} <> n{number}"
        if each.encoding.is_same is not None:
            changed += f" AND NOT {each.encoding.is_same(f'o{number}', f'n{number}')}"
        for side, values in (("o", olds), ("n", news)):
            values.append(f"CASE WHEN {changed} THEN {_named(each.key, ',')} || {side}{number} ELSE '' END")
    changes = (
        "(WITH images AS MATERIALIZED (SELECT\n        "
        + ",\n        ".join(images)
        + ")\n    SELECT\n        "
        + _joined(olds, "\n        || ")
        + " AS old_values,\n        "
        + _joined(news, "\n        || ")
        + " AS new_values\n    FROM images)"
    )
    yield _insert(
        audited.trail,
        "update",
        audited.label,
        key=_key(audited, "NEW"),
        user=_user(audited, "NEW"),
        old="'{' || substr(changes.old_values, 2) || '}'",
        new="'{' || substr(changes.new_values, 2) || '}'",
        source=f"{changes} AS changes",
        where=f"changes.old_values <> '' AND {is_same_key}",
    )
    is_moved = f"({' OR '.join(moved)}) AND NOT ({is_same_key})"
    yield _record_delete(audited, is_moved)
    yield _record_insert(audited, _last(audited.trail, "transaction_id"), is_moved)


def _record_insert(audited: _Audited, transaction: str, where: str | None = None) -> str:
    return _insert(
        audited.trail,
        "insert",
        audited.label,
        key=_key(audited, "NEW"),
        user=_user(audited, "NEW"),
        new=_image(audited, "NEW"),
        where=where,
        transaction=transaction,
    )


def _record_delete(audited: _Audited, where: str | None = None) -> str:
    return _insert(
        audited.trail,
        "delete",
        audited.label,
        key=_key(audited, "OLD"),
        user=_user(audited, "OLD"),
        old=_image(audited, "OLD"),
        where=where,
    )


def _insert(
    trail: Table,
    operation: str,
    label: str,
    *,
    key: str,
    user: str,
    old: str = "NULL",
    new: str = "NULL",
    source: str | None = None,
    where: str | None = None,
    transaction: str = "NULL",
) -> str:
    """Return the INSERT of a change; *transaction* is its id, if the writer published none, and one is known."""
    columns = trail.columns
    is_one_row = source is None and where is None
    said = (
        f"(SELECT json_extract(document, '$.{{}}') FROM {PUBLISHED})".format
        if is_one_row
        else "json_extract(published.document, '$.{}')".format
    )
    values = {
        columns.transaction_id: (
            f"coalesce(replace({said('transaction')}, '-', ''), {transaction}, (SELECT {_NEW_TRANSACTION}))"
        ),
        columns.recorded_at: (
            f"max(strftime('%Y-%m-%d %H:%M:%f000', 'now'), coalesce({_last(trail, 'recorded_at')}, ''))"
        ),
        columns.operation: literal(operation),
        columns.resource_type: literal(label),
        columns.resource_id: key,
        columns.changed_by: f"coalesce({said('user')}, {user})",
        columns.impersonated_by: said("impersonator"),
        columns.reason: said("reason"),
        columns.context: said("facts"),
        columns.old_values: old,
        columns.new_values: new,
    }
    names = ", ".join(quoted(column.name) for column in values)
    into, row = f"INSERT INTO {quoted(trail.name)} ({names})\n", ",\n    ".join(values.values())
    if is_one_row:
        # SQLite keeps what it selects in a table of its own before it inserts it.
        return f"{into}VALUES (\n    {row})"
    return f"{into}SELECT\n    {row}\nFROM {source or '(SELECT 1)'} LEFT JOIN {PUBLISHED} AS published ON 1" + (
        f"\nWHERE {where}" if where is not None else ""
    )


_NEW_TRANSACTION: Final = (
    "lower(printf('%012x', strftime('%s', 'now') * 1000 + substr(strftime('%f', 'now'), 4)) || '7' "
    "|| substr(hex(randomblob(2)), 2) || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(8)), 2))"
)
"""A UUID that grows with time (RFC 9562, section 5.7), as a Uuid is stored."""


def _last(trail: Table, name: str) -> str:
    column = quoted(trail.columns[name].name)
    return f"(SELECT {column} FROM {quoted(trail.name)} ORDER BY {quoted(trail.columns.id.name)} DESC LIMIT 1)"


def _image(audited: _Audited, row: str) -> str:
    """Return the JSON of every recorded column."""
    parts = [
        f"{_named(each.key, '{' if number == 0 else ',')} || {each.json(row)}"
        for number, each in enumerate(audited.columns)
    ]
    return _joined(parts, "\n        || ") + " || '}'"


def _named(key: str, before: str) -> str:
    return literal(f"{before}{json.dumps(key, ensure_ascii=False)}:")


def _key(audited: _Audited, row: str) -> str:
    """Return the resource id."""
    if len(audited.key) == 1:
        return audited.key[0].text(row)
    return "'[' || " + " || ',' || ".join(each.json(row) for each in audited.key) + " || ']'"


def _user(audited: _Audited, row: str) -> str:
    """Return the actor that the row itself names."""
    if audited.user is None:
        return "NULL"
    return f"CASE WHEN {audited.user.of_row(row)} IS NOT NULL THEN {audited.user.text(row)} END"


def _joined(parts: Sequence[str], by: str) -> str:
    """Return *parts* as one expression, not deeper than SQLite takes."""
    if len(parts) <= _WIDTH:
        return by.join(parts)
    groups = [by.join(parts[start : start + _WIDTH]) for start in range(0, len(parts), _WIDTH)]
    return by.join(f"({group})" for group in groups)


_WIDTH: Final = 50


# --- rows that are replaced ------------------------------------------------------------------------------------------
#
# INSERT OR REPLACE, UPDATE OR REPLACE and ON CONFLICT REPLACE delete the rows that are
# in the way, and no trigger fires unless recursive_triggers is on. Before a row is
# written, those that have one of its unique keys are noted; afterwards, those that are
# gone were replaced. A row that is deleted or updated otherwise isn't noted any more. What
# other statements have left, as INSERT OR IGNORE does, is told by its moment: 'now' is
# the same in all of a statement.


def _noting(audited: _Audited, *, is_update: bool = False) -> list[str]:
    heir = "NULL" if audited.row is not None else _primary_key(audited, "NEW")
    return [
        f"DELETE FROM {REPLACED} WHERE moment <> julianday('now') "
        f"OR note <= (SELECT max(note) FROM {REPLACED}) - {_NOTES}",
        f"INSERT INTO {REPLACED} (moment, source, place, heir, resource_id, changed_by, old_values)\n"
        f"SELECT\n    julianday('now'), {literal(audited.name)}, {_place(audited, 'there')}, {heir},\n"
        f"    {_key(audited, 'there')},\n    {_user(audited, 'there')},\n    {_image(audited, 'there')}\n"
        f"FROM {quoted(audited.name)} AS there\nWHERE {_is_in_the_way(audited, is_update=is_update)}",
    ]


def _is_in_the_way(audited: _Audited, *, is_update: bool) -> str:
    """The criterion of rows, as *there*, that have a unique key of the new one."""
    table = quoted(audited.name)
    if audited.row is not None:
        place, here, old = f"there.{audited.row}", audited.row, f"OLD.{audited.row}"
        met = [f"SELECT {here} FROM {table} AS met WHERE met.{here} = NEW.{here}"]
    else:
        names = [quoted(name) for name in audited.primary_key]
        place = f"({', '.join(f'there.{name}' for name in names)})"
        here, old = ", ".join(f"met.{name}" for name in names), f"({', '.join(f'OLD.{name}' for name in names)})"
        met = []
    met += [f"SELECT {here} FROM {table} AS met WHERE {unique.is_met('met')}" for unique in audited.uniques]
    where = f"{place} IN (\n    " + "\n    UNION ALL ".join(met) + ")"
    return f"{where} AND {place} <> {old}" if is_update else where


def _meets(audited: _Audited) -> str:
    """The criterion that there are rows with a unique key of the new one."""
    table = quoted(audited.name)
    row = [] if audited.row is None else [f"met.{audited.row} = NEW.{audited.row}"]
    ways = [*row, *(unique.is_met("met") for unique in audited.uniques)]
    return "(" + "\n    OR ".join(f"EXISTS (SELECT 1 FROM {table} AS met WHERE {way})" for way in ways) + ")"


_NOTES: Final = 16
"""So many are kept within a statement that leaves them: more than one row can meet, with those that its triggers write."""


def _is_moved(audited: _Audited) -> str | None:
    """The criterion that an update changes a unique key; None if that can't be told."""
    names = {name: None for unique in audited.uniques for name in unique.columns}
    if any(unique.is_computed for unique in audited.uniques):
        return None
    row = [] if audited.row is None else [f"OLD.{audited.row} IS NOT NEW.{audited.row}"]
    differ = [f"OLD.{quoted(name)} COLLATE BINARY IS NOT NEW.{quoted(name)}" for name in names]
    return f"({_joined([*row, *differ], ' OR ')})"


def _place(audited: _Audited, row: str) -> str:
    """What tells a row from others of its table."""
    return f"{row}.{audited.row}" if audited.row is not None else _primary_key(audited, row)


def _primary_key(audited: _Audited, row: str) -> str:
    return " || ',' || ".join(f"quote({row}.{quoted(name)})" for name in audited.primary_key)


def _is_gone(audited: _Audited) -> str:
    """The criterion of notes of rows that the new one has replaced."""
    last = (
        f"replaced.source = {literal(audited.name)} AND replaced.moment = julianday('now') "
        f"AND NOT EXISTS (SELECT 1 FROM {REPLACED} AS later WHERE later.source = replaced.source "
        f"AND later.place = replaced.place AND later.note > replaced.note)"
    )
    if audited.row is None:
        return f"{last} AND replaced.heir = {_primary_key(audited, 'NEW')}"
    return (
        f"{last} AND (replaced.place = NEW.{audited.row} OR NOT EXISTS "
        f"(SELECT 1 FROM {quoted(audited.name)} AS there WHERE there.{audited.row} = replaced.place))"
    )


def _has_replaced(audited: _Audited) -> str:
    return f"EXISTS (SELECT 1 FROM {REPLACED} AS replaced WHERE {_is_gone(audited)})"


def _record_replaced(audited: _Audited) -> str:
    return _insert(
        audited.trail,
        "delete",
        audited.label,
        key="replaced.resource_id",
        user="replaced.changed_by",
        old="replaced.old_values",
        source=f"{REPLACED} AS replaced",
        where=f"{_is_gone(audited)}\nORDER BY replaced.note",
    )


def _forget_replaced(audited: _Audited) -> list[str]:
    return [f"DELETE FROM {REPLACED} WHERE note IN (SELECT note FROM {REPLACED} AS replaced WHERE {_is_gone(audited)})"]


def _forget(audited: _Audited) -> str:
    return f"DELETE FROM {REPLACED} WHERE source = {literal(audited.name)} AND place = {_place(audited, 'OLD')}"
