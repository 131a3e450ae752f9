"""
What the database itself does to other rows: ON DELETE and ON UPDATE of foreign keys.

*Effect* is what happens to a row that is referred to: it goes (None), or these
of its columns change.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, ForeignKeyConstraint, FromClause, Table, select

from sqlaudit.capture.division import ACTIONS, tracking_in_session
from sqlaudit.capture.rows import (
    ROWS_PER_SELECT,
    AuditedTable,
    Image,
    RowChange,
    among,
    audited_table,
    batched,
    read_images,
    select_images,
)
from sqlaudit.exceptions import UncapturedStatementError
from sqlaudit.tracking import all_tracked
from sqlaudit.types import Operation

__all__ = ["CascadedRows", "has_dependents", "read_cascaded"]


Effect: TypeAlias = frozenset[str] | None

_dependents: WeakKeyDictionary[Table, dict[Effect, tuple[tuple[int, int], bool]]] = WeakKeyDictionary()


@dataclass(slots=True, eq=False)
class CascadedRows:
    """The tracked rows that the database may change by itself, read before it does."""

    options: Mapping[str, Any]
    """Execution options that say where the tables are."""
    tables: dict[Table, AuditedTable] = field(default_factory=dict)
    images: dict[Table, dict[str, Image]] = field(default_factory=dict)
    primary_keys: dict[Table, dict[str, tuple[Any, ...]]] = field(default_factory=dict)

    def forget(self, table: Table, row_keys: Iterable[str]) -> None:
        """Leave out rows that are recorded as changes of the statement itself."""
        for row_key in row_keys:
            if self.images.get(table, {}).pop(row_key, None) is not None:
                del self.primary_keys[table][row_key]

    def changes(self, connection: Connection) -> Iterator[tuple[Table, str, list[RowChange]]]:
        """Yield what the database has done, by row; the statement has been sent."""
        for table, audited in self.tables.items():
            keys = self.primary_keys.get(table, {}).values()
            after = read_images(connection, audited, None, keys, self.options)
            for row_key, old in self.images.get(table, {}).items():
                new = after.get(row_key)
                operation = Operation.UPDATE if new is not None else Operation.DELETE
                yield table, row_key, list(audited.changes(operation, old, new or {}))


def has_dependents(table: Table, effect: Effect) -> bool:
    """Return whether the database may change tracked rows by itself when *effect* happens to rows of *table*."""
    # Asked for every statement; another table, or tracking, makes the answer a new one.
    size = (len(table.metadata.tables), len(all_tracked()))
    known = _dependents.setdefault(table, {}).get(effect)
    if known is None or known[0] != size:
        found = any(_reaches_tracked(foreign_key, effect, frozenset()) for foreign_key in _acting(table, effect))
        known = _dependents[table][effect] = (size, found)
    return known[1]


def read_cascaded(
    connection: Connection,
    table: Table,
    target: FromClause,
    criteria: Iterable[ColumnElement[bool] | None],
    effect: Effect,
    options: Mapping[str, Any],
) -> CascadedRows:
    """Read what refers to the rows of *table* under *criteria*; these speak of *target*, the table or its alias."""
    found = CascadedRows(options)
    for criterion in criteria:
        for foreign_key in _acting(table, effect):
            if not _reaches_tracked(foreign_key, effect, frozenset()):
                continue
            referred = select(*(target.columns[element.column.key] for element in foreign_key.elements))
            if criterion is not None:
                referred = referred.where(criterion)
            _follow(
                connection,
                foreign_key,
                effect,
                map(tuple, connection.execute(referred, execution_options=options).all()),
                found,
                set(),
            )
    return found


def _follow(
    connection: Connection,
    foreign_key: ForeignKeyConstraint,
    effect: Effect,
    referred: Iterable[tuple[Any, ...]],
    found: CascadedRows,
    seen: set[tuple[Table, tuple[Any, ...]]],
) -> None:
    """Read the rows whose *foreign_key* is among *referred*, and in turn what refers to them."""
    table, effect_here = foreign_key.table, _effect_of(foreign_key, effect)
    tracking = tracking_in_session(table)
    if tracking is not None and table not in found.tables:
        found.tables[table] = audited_table(table, tracking, connection.dialect)
    further = [each for each in _acting(table, effect_here) if _reaches_tracked(each, effect_here, frozenset())]
    following: dict[ForeignKeyConstraint, list[tuple[Any, ...]]] = {each: [] for each in further}
    primary_key = list(table.primary_key)
    complete = dict.fromkeys(values for values in referred if None not in values)
    for chunk in batched(complete, ROWS_PER_SELECT):
        refers = among([table.columns[key] for key in foreign_key.column_keys], chunk)
        if tracking is not None:
            audited = found.tables[table]
            query = select_images(audited)
            for row in connection.execute(query.select.where(refers), execution_options=found.options):
                _refuse_new_key(audited, effect_here)
                key, image = query.decode(row)
                found.images.setdefault(table, {})[audited.row_key(key)] = image
                found.primary_keys.setdefault(table, {})[audited.row_key(key)] = key
        for each, values in following.items():
            columns = (element.column for element in each.elements)
            further_rows = select(*primary_key, *columns).where(refers)
            for row in connection.execute(further_rows, execution_options=found.options):
                # A row that was followed before, in a circle of references, isn't again.
                if (mark := (each.table, tuple(row))) not in seen:
                    seen.add(mark)
                    values.append(tuple(row[len(primary_key) :]))
    for each, values in following.items():
        if values:
            _follow(connection, each, effect_here, values, found, seen)


def _refuse_new_key(audited: AuditedTable, effect: Effect) -> None:
    """Refuse what would give a tracked row another key: nobody could find it by the old one afterwards."""
    if effect is not None and not effect.isdisjoint(audited.primary_key):
        raise UncapturedStatementError(
            "A new key, which the database hands on to the keys",
            audited.table.name,
            "let SQLAlchemy hand it on, with relationship(passive_updates=False)",
        )


def _acting(table: Table, effect: Effect) -> Iterator[ForeignKeyConstraint]:
    """Yield the foreign keys to *table*, of its `MetaData`, by which the database hands the effect on."""
    for other in table.metadata.tables.values():
        for foreign_key in other.foreign_key_constraints:
            action = foreign_key.ondelete if effect is None else foreign_key.onupdate
            if action is None or action.upper() not in ACTIONS or foreign_key.referred_table is not table:
                continue
            if effect is None or any(element.column.key in effect for element in foreign_key.elements):
                yield foreign_key


def _effect_of(foreign_key: ForeignKeyConstraint, effect: Effect) -> Effect:
    """Return what happens to the rows that refer: they go with ON DELETE CASCADE; else the foreign key changes."""
    if effect is None and foreign_key.ondelete is not None and foreign_key.ondelete.upper() == "CASCADE":
        return None
    return frozenset(foreign_key.column_keys)


def _reaches_tracked(foreign_key: ForeignKeyConstraint, effect: Effect, seen: frozenset[Table]) -> bool:
    table, effect_here = foreign_key.table, _effect_of(foreign_key, effect)
    if tracking_in_session(table) is not None:
        return True
    if table in seen:
        return False
    return any(_reaches_tracked(each, effect_here, seen | {table}) for each in _acting(table, effect_here))
