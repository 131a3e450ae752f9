"""Which changes are of rows that are, or were, related to others, by what the trail says. No session in here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Dialect,
    FromClause,
    Select,
    Table,
    and_,
    or_,
    select,
    tuple_,
    union,
)
from sqlalchemy.orm import RelationshipProperty

from sqlaudit._documents import has_values, texts_in
from sqlaudit._filters import ChangeFilter, relationships_of
from sqlaudit._sources import Source, sources_of
from sqlaudit.codec import JSONValue, key_text
from sqlaudit.exceptions import RetrievalError, UntrackedError
from sqlaudit.tracking import tracking_of

_Pairs = Sequence[tuple[Column[Any], Column[Any]]]
_Texts = Select[Any] | CompoundSelect[Any]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a tracked table, whatever happened to them."""

    source: Source
    ids: Sequence[str] | _Texts
    """Their resource ids."""
    keys: Sequence[Sequence[JSONValue]] | None = None
    """The parts of their resource ids, if they are known."""

    def criterion(self, changes: FromClause) -> ColumnElement[bool]:
        """Return the criterion that a change is of one of them."""
        return and_(
            changes.c.resource_type.in_(self.source.tracking.labels),
            changes.c.resource_id.in_(self.ids),
        )


def related(
    wanted: ChangeFilter, name: str, dialect: Dialect, trail: Table
) -> Iterator[tuple[Source, ColumnElement[bool]]]:
    """
    Yield the tables that the relationship *name* leads to, and which of their changes are of related rows.

    Through a secondary table: its rows, and what they lead to, if that is tracked.

    Raises:
        UntrackedError: what it leads to isn't tracked.
        RetrievalError: the trail doesn't tell which rows are related.
    """
    (model,) = wanted.models or (None,)
    # check_include has seen to it that there is one.
    relationship = relationships_of(model)[name]
    ids = wanted.resource_ids or ()
    own = [_named(source, ids, dialect) for source in sources_of(model)]
    if relationship.secondary is None:
        yield from _other_side(own, _pairs(relationship.local_remote_pairs), _targets(relationship), name, trail)
        return
    association = _association(relationship)
    pairs = _pairs(relationship.synchronize_pairs)
    linking = _rows_with(association, pairs, _side_of(own, pairs, name), name, trail)
    yield association, linking.criterion(trail)
    if any(True for table in relationship.mapper.tables if tracking_of(table) is not None):
        beyond = [(there, here) for here, there in _pairs(relationship.secondary_synchronize_pairs or ())]
        yield from _other_side([linking], beyond, _targets(relationship), name, trail)


def _other_side(
    rows: Sequence[_Rows], pairs: _Pairs, targets: Sequence[Source], name: str, trail: Table
) -> Iterator[tuple[Source, ColumnElement[bool]]]:
    """Yield the targets, of which one has the columns that *pairs* lead to; the others share its keys."""
    target = _holding(targets, [remote for _, remote in pairs], name)
    there = _rows_with(target, pairs, _side_of(rows, pairs, name), name, trail)
    for source in targets:
        yield source, _Rows(source, there.ids).criterion(trail)


def _named(source: Source, ids: Sequence[Any], dialect: Dialect) -> _Rows:
    resource = source.resource(dialect)
    keys = [resource.key_parts(each) for each in ids]
    return _Rows(source, sorted({key_text(parts) for parts in keys}), keys)


def _targets(relationship: RelationshipProperty[Any]) -> list[Source]:
    return sources_of(relationship.mapper.class_)


def _association(relationship: RelationshipProperty[Any]) -> Source:
    secondary = relationship.secondary
    if not isinstance(secondary, Table):
        raise RetrievalError(f"{relationship} has no table in between whose rows could be followed; leave it out.")
    if tracking_of(secondary) is None:
        raise UntrackedError(f"The table {secondary.fullname}", is_table=True)
    return sources_of(secondary)[0]


def _pairs(pairs: Any) -> _Pairs:
    return [(local, remote) for local, remote in pairs]


def _holding(sources: Sequence[Source], columns: Sequence[Column[Any]], name: str) -> Source:
    """Return the table that *columns* are of, and whose trail tells their values."""
    for source in sources:
        if all(column.table is source.table for column in columns):
            return source
    raise RetrievalError(
        f"include names {name!r}, which is related by columns of {columns[0].table.name}: audit that table, too, or "
        f"leave it out."
    )


def _side_of(rows: Sequence[_Rows], pairs: _Pairs, name: str) -> _Rows:
    """Return those of *rows* that are in the table from which *pairs* lead."""
    source = _holding([each.source for each in rows], [local for local, _ in pairs], name)
    return next(each for each in rows if each.source is source)


def _rows_with(source: Source, pairs: _Pairs, rows: _Rows, name: str, trail: Table) -> _Rows:
    """Return the rows that have, or had, the values that *rows* have, or had, at the other end of *pairs*."""
    own, others = [local.key for local, _ in pairs], [remote.key for _, remote in pairs]
    key = source.tracking.resource_key
    known = _known_values(rows, own)
    if known is None:
        _check_told(rows.source, own, name)
    if known is not None and set(key) == set(others):
        parts = [[values[others.index(each)] for each in key] for values in known]
        return _Rows(source, sorted({key_text(each) for each in parts}), parts)
    if known is None and len(key) == 1 and tuple(others) == key:
        # A key of one column is its value's text.
        return _Rows(source, union(*_texts(rows, own, trail)))
    _check_told(source, others, name)
    changes = trail.alias()
    if known is not None:
        same = has_values(changes, source.tracking.renamed, others, known)
    else:
        values = union(*_texts(rows, own, trail))
        places = texts_in(changes, source.tracking.renamed, others)
        same = or_(*((tuple_(*each) if len(each) > 1 else each[0]).in_(values) for each in places))
    has_label = changes.c.resource_type.in_(source.tracking.labels)
    return _Rows(source, select(changes.c.resource_id).where(has_label, same).correlate(None))


def _known_values(rows: _Rows, keys: Sequence[str]) -> list[list[JSONValue]] | None:
    """Return the values of the columns *keys*, if they are what *rows* are named by."""
    named_by = rows.source.tracking.resource_key
    if rows.keys is None or not set(keys) <= set(named_by):
        return None
    return [[parts[named_by.index(key)] for key in keys] for parts in rows.keys]


def _texts(rows: _Rows, keys: Sequence[str], trail: Table) -> list[Select[Any]]:
    """Return the queries for the values that the columns *keys* of *rows* have, or had."""
    changes = trail.alias()
    places = texts_in(changes, rows.source.tracking.renamed, keys)
    columns: list[list[ColumnElement[Any]]] = [[*each] for each in places]
    return [select(*each).where(rows.criterion(changes)).correlate(None) for each in columns]


def _check_told(source: Source, keys: Sequence[str], name: str) -> None:
    untold = sorted(set(keys) - {*source.tracking.recorded} | set(keys) & source.tracking.masked)
    if untold:
        raise RetrievalError(
            f"include names {name!r}, but the trail of {source.tracking.label} doesn't tell {', '.join(untold)}, by "
            f"which its rows are related; track it unmasked, or leave {name!r} out."
        )
