"""What a row was at a moment: its tables' changes, read from where they must be and put together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, FromClause, Row, Table, and_, func, literal, or_, select
from sqlalchemy.orm import Mapper, Session

from sqlaudit._replay import COMPLETE, Folded, StoredChange, folded, unwound
from sqlaudit._sources import names_of
from sqlaudit._statements import present_values
from sqlaudit._subjects import At, Moment, Part, Subject, check_names
from sqlaudit.codec import Codec, JSONValue, decode_value
from sqlaudit.exceptions import RetrievalError, UnknownStateError
from sqlaudit.tracking import tracked_tables
from sqlaudit.types import MASKED, Operation

__all__ = ["Past", "Snapshot", "read_page", "read_past", "snapshot_of"]

SNAPSHOTS_PER_PAGE: Final = 200

ROWS_PER_SELECT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a resource was at a moment. Detached from any session."""

    model: type[Any] | Table
    """The class of the object then, a subclass of the one that was asked for perhaps; or the Core table."""
    resource_type: str
    """The label of the table that was asked for."""
    resource_id: Any
    """The key: a Python value, a tuple if it has several columns."""
    at: At
    """The moment that was asked for; a datetime is aware. None is now."""
    change_id: int | None
    """The last change of the row up to then; None if there was none."""
    state: Mapping[str, Any] | None
    """
    The tracked attributes and their values then, typed by the model; None when
    there was no row.

    A withheld value is `MASKED`. A column that was added, or tracked, later than
    the row's last insert is missing until a change tells it, rather than None.
    """
    related: Mapping[str, tuple["Snapshot", ...]] = field(default_factory=dict)
    """By the name of a relationship that was included: what it led to then, oldest rows first."""

    @property
    def exists(self) -> bool:
        """Whether there was a row."""
        return self.state is not None


# --- one table's rows ------------------------------------------------------------------------------------------------


def _of(trail: FromClause, part: Part, texts: Sequence[str]) -> list[ColumnElement[bool]]:
    return [trail.c.resource_type.in_(part.resource.labels), trail.c.resource_id.in_(texts)]


def _select_until(trail: Table, part: Part, texts: Sequence[str], moment: Moment) -> Any:
    """
    Return the query for the changes of some rows up to a moment, oldest first.

    It begins with the last one that tells the whole row: what was before isn't read.
    """
    columns, earlier = trail.c, trail.alias("earlier")
    query = (
        select(columns.resource_id, columns.id, columns.operation, columns.old_values, columns.new_values)
        .where(*_of(trail, part, texts), moment.includes(trail))
        .order_by(columns.resource_id, columns.id)
    )
    if len(texts) == 1:
        # Found from the end: no row is visited that isn't read.
        start = (
            select(earlier.c.id)
            .where(*_of(earlier, part, texts), earlier.c.operation.in_(COMPLETE), moment.includes(earlier))
            .order_by(earlier.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        return query.where(columns.id >= func.coalesce(start, 0))
    starts = (
        select(earlier.c.resource_id, func.max(earlier.c.id).label("start"))
        .where(*_of(earlier, part, texts), earlier.c.operation.in_(COMPLETE), moment.includes(earlier))
        .group_by(earlier.c.resource_id)
        .subquery("starts")
    )
    return query.join_from(trail, starts, starts.c.resource_id == columns.resource_id, isouter=True).where(
        columns.id >= func.coalesce(starts.c.start, 0)
    )


def stored_change(part: Part, row: Row[Any]) -> StoredChange:
    """Return a row of the trail under the column keys of today."""
    renamed = part.tracking.renamed
    old, new = present_values(renamed, row.old_values), present_values(renamed, row.new_values)
    return StoredChange(row.id, row.operation, old, new)


def rows_of(session: Session, subject: Subject, query: Executable) -> Iterable[Row[Any]]:
    """Return the rows of a query that gives few."""
    return session.execute(query, bind_arguments=dict(subject.bind_arguments)).all()


def _rows_in_pages(
    session: Session, subject: Subject, query: Any, after: Callable[[Row[Any]], ColumnElement[bool]]
) -> Iterator[Row[Any]]:
    """
    Yield the rows of a query that may give many; *after* is the criterion that one comes after a given one.

    A server-side cursor would do it, too, but not outside of a transaction.
    """
    page = query.limit(ROWS_PER_SELECT)
    while True:
        rows = list(rows_of(session, subject, page))
        yield from rows
        if len(rows) < ROWS_PER_SELECT:
            return
        page = query.where(after(rows[-1])).limit(ROWS_PER_SELECT)


def read_part(
    session: Session, subject: Subject, part: Part, texts: Sequence[str], moment: Moment
) -> dict[str, Folded]:
    """
    Return what rows of one table were, by the text of their keys.

    A row that the trail never tells of isn't in it.
    """
    trail = subject.trail
    found: dict[str, Folded] = {}
    columns = trail.c
    rows = _rows_in_pages(
        session,
        subject,
        _select_until(trail, part, texts, moment),
        lambda last: or_(
            columns.resource_id > last.resource_id,
            and_(columns.resource_id == last.resource_id, columns.id > last.id),
        ),
    )
    for text, group in groupby(rows, key=lambda row: str(row.resource_id)):
        found[text] = folded(stored_change(part, row) for row in group)
    later = [text for text in texts if text not in found]
    if later:
        first = (
            select(trail.c.resource_id, func.min(trail.c.id).label("id"))
            .where(*_of(trail, part, later))
            .group_by(trail.c.resource_id)
            .subquery("first")
        )
        query = select(trail.c.resource_id, trail.c.operation).join(first, first.c.id == trail.c.id)
        for row in rows_of(session, subject, query):
            # Before its insert there was no row; before its first update there was one, and nobody knows what it was.
            found[row.resource_id] = Folded(None, row.operation == Operation.INSERT.value, None)
    for text, state in found.items():
        if not state.is_known and state.change_id is not None:
            found[text] = _read_backwards(session, subject, part, text, moment, state)
    return found


def _read_backwards(session: Session, subject: Subject, part: Part, text: str, moment: Moment, state: Folded) -> Folded:
    """Return what a row was whose beginning isn't in the trail: a later change may tell the whole of it."""
    trail = subject.trail
    end = (
        select(func.min(trail.c.id))
        .where(*_of(trail, part, [text]), trail.c.operation.in_(COMPLETE), moment.excludes(trail))
        .scalar_subquery()
    )
    columns = trail.c
    query = (
        select(columns.id, columns.operation, columns.old_values, columns.new_values)
        .where(*_of(trail, part, [text]), moment.excludes(trail), columns.id <= end)
        .order_by(columns.id.desc())
    )
    rows = _rows_in_pages(session, subject, query, lambda last: columns.id < last.id)
    before = unwound(stored_change(part, row) for row in rows)
    if not before.is_known or before.values is None:
        return state
    return Folded(before.values, is_known=True, change_id=state.change_id)


# --- one object ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredField:
    """A value of an object as it is stored, and the column that it is of."""

    part: Part
    key: str
    stored: JSONValue

    @property
    def codec(self) -> Codec | None:
        """How it is read; None for a masked column."""
        return self.part.resource.codecs.get(self.key)

    @property
    def value(self) -> Any:
        """The Python value."""
        # What was stored before the field was masked is withheld, too.
        return MASKED if self.key in self.part.tracking.masked else decode_value(self.codec, self.stored)


def differ(one: StoredField, other: StoredField) -> bool:
    """Return whether two values of a field are two; nobody knows that of masked ones."""
    codec = one.codec
    if codec is None:
        return False
    try:
        return not codec.same(one.stored, other.stored)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        # One was stored when the column was of another type.
        return True


@dataclass(frozen=True, slots=True)
class Past:
    """What an object was, with all that the trail holds of it."""

    model: type[Any] | Table
    mapper: Mapper[Any] | None
    """Of the class that it was of."""
    text: str
    change_id: int | None
    fields: Mapping[str, StoredField] | None
    """By attribute; the primary key is there, tracked or not. None when there was no row."""

    @property
    def state(self) -> dict[str, Any] | None:
        """The tracked attributes and their values."""
        if self.fields is None:
            return None
        return {name: each.value for name, each in self.fields.items() if each.key in each.part.tracking.fields}


def assembled(subject: Subject, text: str, outcomes: Mapping[Part, Folded]) -> Past:
    """
    Put together what the rows of an object were.

    Raises:
        UnknownStateError: the trail doesn't tell all of it.
    """
    last = max((each.change_id for each in outcomes.values() if each.change_id is not None), default=None)
    mapper = _class_then(subject, outcomes)
    absent = Past(subject.model, subject.mapper, text, last, None)
    if subject.mapper is None or mapper is None:
        needed = subject.parts
    elif not mapper.isa(subject.mapper):
        return absent
    else:
        tables = {table for table, _ in tracked_tables(mapper)}
        needed = tuple(part for part in subject.parts if part.table in tables)
    found = [outcomes.get(part) for part in needed]
    if any(each is not None and each.is_known and each.values is None for each in found):
        return absent
    fields: dict[str, StoredField] = {}
    for part, each in zip(needed, found, strict=True):
        if each is None or not each.is_known or each.values is None:
            raise UnknownStateError(subject.base.tracking.label, text)
        names = part.resource.names if mapper is None else names_of(mapper, part.table)
        for key in part.tracking.recorded:
            if key in each.values and key in names:
                fields.setdefault(names[key], StoredField(part, key, each.values[key]))
    return Past(subject.model if mapper is None else mapper.class_, mapper, text, last, fields)


def _class_then(subject: Subject, outcomes: Mapping[Part, Folded]) -> Mapper[Any] | None:
    """Return the class that an object was of, by its discriminator; the model's own if nothing tells."""
    mapper = subject.mapper
    if mapper is None or mapper.polymorphic_on is None:
        return mapper
    for part, outcome in outcomes.items():
        for key in part.tracking.recorded:
            codec = part.resource.codecs.get(key)
            if part.table.columns[key] is not mapper.polymorphic_on or codec is None or outcome.values is None:
                continue
            for each in mapper.base_mapper.self_and_descendants:
                identity = each.polymorphic_identity
                if identity is not None and codec.dump(identity) == outcome.values.get(key, _NO_VALUE):
                    return each
    return mapper


_NO_VALUE: Final = object()


def read_past(session: Session, subject: Subject, resource_id: Any, moment: Moment) -> Past:
    """
    Return what an object was.

    Raises:
        RetrievalError: *resource_id* is no key of the model.
        UnknownStateError: the trail doesn't tell.
    """
    outcomes: dict[Part, Folded] = {}
    for part in subject.parts:
        of_part = part.text_of(resource_id)
        found = read_part(session, subject, part, [of_part], moment)
        if of_part in found:
            outcomes[part] = found[of_part]
    text = subject.base.text_of(resource_id)
    if not outcomes and _row_exists(session, subject, text):
        raise UnknownStateError(subject.base.tracking.label, text)
    if not outcomes:
        return Past(subject.model, subject.mapper, text, None, None)
    return assembled(subject, text, outcomes)


def _row_exists(session: Session, subject: Subject, text: str) -> bool:
    """Return whether there is a row that the trail never told of: it was there before auditing began."""
    base = subject.base
    key = base.key_of(text)
    parts = key if len(base.tracking.resource_key) > 1 else (key,)
    columns = [base.table.columns[each] for each in base.tracking.resource_key]
    query = select(literal(1)).where(*(column == value for column, value in zip(columns, parts, strict=True)))
    return session.execute(query.limit(1), bind_arguments=dict(subject.bind_arguments)).first() is not None


def snapshot_of(
    subject: Subject, past: Past, moment: Moment, related: Mapping[str, tuple[Snapshot, ...]] | None = None
) -> Snapshot:
    """Return what users receive of *past*."""
    return Snapshot(
        model=past.model,
        resource_type=subject.base.tracking.label,
        resource_id=subject.base.key_of(past.text),
        at=moment.at,
        change_id=past.change_id,
        state=past.state,
        related={} if related is None else dict(related),
    )


# --- all of a model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects of a model."""

    pasts: list[Past]
    last: str | None
    """The key to go on after; None at the end."""


def read_page(
    session: Session, subject: Subject, moment: Moment, after: str | None, size: int, *, skip_unknown: bool
) -> Page:
    """
    Return the objects that there were with the next *size* keys.

    Raises:
        UnknownStateError: the trail doesn't tell what one of them was.
    """
    trail = subject.trail
    # A subclass has fewer rows in its own table than its base has.
    own = [part for part in subject.parts if subject.mapper is not None and part.table is subject.mapper.local_table]
    driving = own[0] if own else subject.base
    query = select(trail.c.resource_id).where(trail.c.resource_type.in_(driving.resource.labels))
    if after is not None:
        query = query.where(trail.c.resource_id > after)
    query = query.distinct().order_by(trail.c.resource_id).limit(size)
    texts = [row.resource_id for row in rows_of(session, subject, query)]
    by_part = {part: read_part(session, subject, part, texts, moment) for part in subject.parts} if texts else {}
    pasts = []
    for text in texts:
        outcomes = {part: found[text] for part, found in by_part.items() if text in found}
        try:
            past = assembled(subject, text, outcomes)
        except UnknownStateError:
            if skip_unknown:
                continue
            raise
        if past.fields is not None:
            pasts.append(past)
    return Page(pasts, texts[-1] if len(texts) == size else None)


def matcher(subject: Subject, where: Mapping[str, Any]) -> Callable[[Past], bool]:
    """
    Return the test whether an object had these values.

    Raises:
        UnknownFieldError: the model has no such field.
        RetrievalError: a field is masked.
    """
    check_names(subject, "where", where)
    masked = {part.resource.names.get(key, key) for part in subject.parts for key in part.tracking.masked}
    if hidden := masked & where.keys():
        raise RetrievalError(f"where names {', '.join(map(repr, sorted(hidden)))}, whose values the trail withholds.")

    def has_value(each: StoredField | None, value: Any) -> bool:
        if each is None:
            return False
        if each.codec is None or value is None:
            return bool(each.value == value)
        try:
            return each.codec.same(each.codec.dump(value), each.stored)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            # A value of another type: that of the column then, perhaps.
            return bool(each.value == value)

    return lambda past: all(has_value((past.fields or {}).get(name), value) for name, value in where.items())
