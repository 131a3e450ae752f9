"""What relationships of an object led to at a moment."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import BinaryExpression, func, select
from sqlalchemy.orm import RelationshipProperty, Session
from sqlalchemy.sql import visitors

from sqlaudit._documents import has_values
from sqlaudit._snapshots import Past, Snapshot, read_past, rows_of, snapshot_of
from sqlaudit._subjects import Moment, Part, Subject, subject_of
from sqlaudit.exceptions import RetrievalError, UnknownFieldError

__all__ = ["read_related"]


def read_related(
    session: Session, subject: Subject, past: Past, moment: Moment, include: Collection[str]
) -> dict[str, tuple[Snapshot, ...]]:
    """
    Return what relationships of an object led to, by their names.

    Raises:
        UnknownFieldError: the model has no such relationship.
        UntrackedError: what it leads to isn't tracked.
        RetrievalError: its columns aren't.
    """
    if not include:
        return {}
    mapper = past.mapper or subject.mapper
    known = {} if mapper is None else {each.key: each for each in mapper.relationships}
    asked = (
        {}
        if subject.mapper is None
        else {each.key for one in subject.mapper.self_and_descendants for each in one.relationships}
    )
    if unknown := set(include) - set(asked):
        raise UnknownFieldError(subject.base.tracking.label, "include", unknown, asked)
    # A relationship of another subclass led nowhere.
    return {
        name: _related(session, subject, past, moment, known[name]) if name in known and past.fields is not None else ()
        for name in include
    }


def _related(
    session: Session, subject: Subject, past: Past, moment: Moment, relationship: RelationshipProperty[Any]
) -> tuple[Snapshot, ...]:
    name = f"{relationship.parent.class_.__name__}.{relationship.key}"
    if not _is_plain(relationship):
        raise RetrievalError(
            f"What {name} led to can't be told: it has criteria beside its columns; include a relationship without."
        )
    target = subject_of(relationship.mapper.class_, session, subject.config)
    here = {column: _value_in(past, column, name) for column, _ in _pairs(relationship)}
    if relationship.secondary is None:
        keys = [tuple((remote, here[local]) for local, remote in _pairs(relationship))]
    else:
        keys = list(_keys_by_links(session, subject, moment, relationship, here))
    snapshots: dict[str, Snapshot] = {}
    for pairs in keys:
        wanted = dict(pairs)
        if None in wanted.values():
            continue
        for text in _candidates(session, target, wanted, name):
            each = read_past(session, target, target.base.key_of(text), moment)
            if each.fields is not None and all(
                _value_in(each, column, name) == value for column, value in wanted.items()
            ):
                snapshots[text] = snapshot_of(target, each, moment)
    return tuple(snapshots.values())


def _is_plain(relationship: RelationshipProperty[Any]) -> bool:
    """Return whether nothing but equal columns makes it."""
    joins = [(relationship.primaryjoin, len(_pairs(relationship)))]
    if relationship.secondaryjoin is not None:
        joins.append((relationship.secondaryjoin, len(relationship.secondary_synchronize_pairs or ())))
    return all(
        sum(isinstance(each, BinaryExpression) for each in visitors.iterate(join)) == count for join, count in joins
    )


def _pairs(relationship: RelationshipProperty[Any]) -> list[tuple[Any, Any]]:
    """Return the columns here and those there that hold their values: there is the secondary table, if there is one."""
    return list(
        relationship.synchronize_pairs if relationship.secondary is not None else relationship.local_remote_pairs or ()
    )


def _keys_by_links(
    session: Session,
    subject: Subject,
    moment: Moment,
    relationship: RelationshipProperty[Any],
    here: Mapping[Any, Any],
) -> Iterator[tuple[tuple[Any, Any], ...]]:
    """Yield the keys that the rows of a secondary table led to, column by column."""
    secondary: Any = relationship.secondary
    links = subject_of(secondary, session, subject.config)
    name = f"{relationship.parent.class_.__name__}.{relationship.key}"
    wanted = {link: here[local] for local, link in _pairs(relationship)}
    for text in _candidates(session, links, wanted, name):
        link = read_past(session, links, links.base.key_of(text), moment)
        if link.fields is None or any(_value_in(link, column, name) != value for column, value in wanted.items()):
            continue
        yield tuple(
            (there, _value_in(link, column, name)) for there, column in relationship.secondary_synchronize_pairs or ()
        )


def _value_in(past: Past, column: Any, relationship: str) -> Any:
    name = column.key if past.mapper is None else past.mapper.get_property_by_column(column).key
    each = (past.fields or {}).get(name)
    if each is None or each.codec is None:
        raise RetrievalError(
            f"What {relationship} led to can't be known: {column} isn't tracked, or masked; name it in tracked_fields."
        )
    return each.value


def _dumped(part: Part, key: str, value: Any, relationship: str) -> Any:
    codec = part.resource.codecs[key]
    if codec is None:
        raise RetrievalError(
            f"What {relationship} led to can't be known: the trail withholds {part.table.columns[key]}."
        )
    return codec.dump(value)


def _candidates(session: Session, target: Subject, wanted: Mapping[Any, Any], name: str) -> list[str]:
    """Return the keys of the rows that ever had these values, in the order in which they came into being."""
    part = next((part for part in target.parts if all(column.table is part.table for column in wanted)), None)
    keys = [column.key for column in wanted]
    if part is None or not set(keys) <= set(part.tracking.recorded):
        raise RetrievalError(
            f"What {name} led to can't be known: {', '.join(map(str, wanted))} isn't tracked; name it in "
            f"tracked_fields."
        )
    if set(keys) == set(part.tracking.resource_key):
        values = {column.key: value for column, value in wanted.items()}
        key = [values[each] for each in part.tracking.resource_key]
        return [part.text_of(tuple(key) if len(key) > 1 else key[0])]
    stored = [_dumped(part, column.key, value, name) for column, value in wanted.items()]
    trail = target.trail
    query = (
        select(trail.c.resource_id, func.min(trail.c.id).label("first"))
        .where(
            trail.c.resource_type.in_(part.resource.labels),
            has_values(trail, part.tracking.renamed, keys, [stored]),
        )
        .group_by(trail.c.resource_id)
        .order_by("first")
    )
    return [row.resource_id for row in rows_of(session, target, query)]
