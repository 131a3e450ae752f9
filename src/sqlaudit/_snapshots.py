"""What a row was at a moment: its tables' changes, read from where they must be and put together."""

import datetime as dt
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, FromClause, Row, Select, Table, func, inspect, literal, or_, select, true
from sqlalchemy.orm import Mapper, RelationshipProperty, Session

from sqlaudit._replay import COMPLETE, Folded, StoredChange, folded, unwound
from sqlaudit._statements import Resource, has_values, present_values, resource_of
from sqlaudit.codec import Codec, JSONValue, decode_value, key_text, key_value
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import RetrievalError, UnknownFieldError, UnknownStateError, UntrackedError
from sqlaudit.tracking import Tracking, tracked_tables, tracking_of
from sqlaudit.types import MASKED, Operation

__all__ = ["At", "Snapshot"]

At: TypeAlias = dt.datetime | int | uuid.UUID | None
"""
A moment: a datetime, inclusive, naive ones in the configured zone; the id of a
change, for the state just after it; the id of a transaction, for the state
after its last change; None for now.
"""

SNAPSHOTS_PER_PAGE: Final = 200

_ROWS_AT_A_TIME: Final = 500

_NOTHING_RELATED: Final[Mapping[str, tuple["Snapshot", ...]]] = MappingProxyType({})


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
    related: Mapping[str, tuple["Snapshot", ...]] = field(default_factory=lambda: _NOTHING_RELATED)
    """By the name of a relationship that was included: what it led to then, oldest rows first."""

    @property
    def exists(self) -> bool:
        """Whether there was a row."""
        return self.state is not None


# --- of what ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of the tracked tables that objects of a model have rows in."""

    table: Table
    tracking: Tracking
    resource: Resource

    def text_of(self, resource_id: Any) -> str:
        """
        Return the text of a key.

        Raises:
            RetrievalError: it is no key of the table.
        """
        return key_text(self.resource.key_parts(resource_id))

    def key_of(self, text: str) -> Any:
        """Return the Python value of a key's text."""
        return key_value(self.resource.key_codecs, text)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model as a session sees it."""

    model: type[Any] | Table
    mapper: Mapper[Any] | None
    parts: tuple[Part, ...]
    """Base tables first, those of subclasses last."""
    config: SQLAuditConfig
    bind_arguments: Mapping[str, Any]

    @property
    def trail(self) -> Table:
        """The table that holds the trail."""
        return self.config.trail

    @property
    def base(self) -> Part:
        """The part that every object of the model has, and that names the resource."""
        return self.parts[0]


def check_model(model: Any) -> None:
    """
    Refuse what isn't tracked.

    Raises:
        RetrievalError: it is neither a mapped class nor a table.
        UntrackedError: it isn't tracked.
    """
    if isinstance(model, Table):
        if tracking_of(model) is None:
            raise UntrackedError(f"The table {model.fullname}", is_table=True)
        return
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise RetrievalError(f"model is {model!r}; expected a mapped class or a tracked Table.")
    # Declarations are resolved when the mappers are configured.
    mapper.registry.configure(cascade=True)
    if not any(tracked_tables(mapper)):
        raise UntrackedError(model.__name__)


def subject_of(model: type[Any] | Table, session: Session, config: SQLAuditConfig) -> Subject:
    """
    Return *model*, with what reading its trail needs.

    Raises:
        RetrievalError: its tables are identified by different fields.
    """
    check_model(model)
    if isinstance(model, Table):
        bind_arguments: dict[str, Any] = {"clause": model}
        tables = {model: {key: key for key in model.columns.keys()}}
        mapper = None
    else:
        mapper = inspect(model)
        bind_arguments = {"mapper": mapper}
        tables = {}
        for each in _sharing_rows(mapper):
            for table, _ in tracked_tables(each):
                tables.setdefault(table, {}).update(names_of(each, table))
    dialect = session.get_bind(**bind_arguments).dialect
    parts = []
    for table, names in tables.items():
        tracking = tracking_of(table)
        if tracking is not None:
            parts.append(Part(table, tracking, resource_of(table, tracking, names, dialect)))
    identified_by = {tuple(part.resource.names.get(key, key) for key in part.tracking.resource_key) for part in parts}
    if len(parts) > 1 and len(identified_by) > 1:
        raise RetrievalError(
            f"The tables of {getattr(model, '__name__', model)} are identified by different fields in the trail, so "
            f"their changes can't be put together; leave out the resource_id_field of joined inheritance."
        )
    return Subject(model, mapper, tuple(parts), config, bind_arguments)


def _sharing_rows(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    """Yield *mapper* and its subclasses, without those that have a table, and keys, of their own."""
    yield mapper
    for each in mapper.self_and_descendants:
        ancestors = list(each.iterate_to_root())
        if each is not mapper and not any(one.concrete for one in ancestors[: ancestors.index(mapper)]):
            yield each


def names_of(mapper: Mapper[Any], table: Table) -> dict[str, str]:
    """Return the attributes of a class by the keys of the columns of one of its tables."""
    attributes = {column: name.key for name in mapper.column_attrs for column in name.columns}
    return {column.key: attributes[column] for column in table.columns if column in attributes}


def tracked_names(subject: Subject) -> set[str]:
    """Return the tracked attributes of a model and its subclasses."""
    return {part.resource.names.get(key, key) for part in subject.parts for key in part.tracking.fields}


def check_names(subject: Subject, argument: str, names: Collection[str]) -> None:
    """
    Refuse names of what isn't tracked.

    Raises:
        UnknownFieldError: there is no such field.
    """
    known = tracked_names(subject)
    if unknown := set(names) - known:
        raise UnknownFieldError(f"the trail of {subject.base.tracking.label}", argument, unknown, known)


# --- when ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment that the trail can be cut at."""

    at: At
    change_id: int | None = None
    time: dt.datetime | None = None

    def includes(self, trail: FromClause) -> ColumnElement[bool]:
        """Return the criterion that a change had been made."""
        if self.change_id is not None:
            return trail.c.id <= self.change_id
        return true() if self.time is None else trail.c.recorded_at <= self.time

    def excludes(self, trail: FromClause) -> ColumnElement[bool]:
        """Return the criterion that a change was made later."""
        return ~self.includes(trail)


def checked_at(at: Any, zone: dt.tzinfo, argument: str = "at") -> At:
    """
    Return a moment, aware if it is a datetime.

    Raises:
        RetrievalError: it is none.
    """
    if isinstance(at, bool) or not (at is None or isinstance(at, (dt.datetime, int, uuid.UUID))):
        raise RetrievalError(
            f"{argument} is a {type(at).__name__}; expected a datetime, the id of a change (int) or of a transaction "
            f"(UUID), or None for now."
        )
    return at.replace(tzinfo=zone) if isinstance(at, dt.datetime) and at.tzinfo is None else at


def moment_of(at: At, session: Session, subject: Subject) -> Moment:
    """
    Return the moment *at* of the trail.

    Raises:
        RetrievalError: the trail has no such transaction.
    """
    if isinstance(at, dt.datetime):
        return Moment(at, time=at)
    if isinstance(at, uuid.UUID):
        trail = subject.trail
        last = select(func.max(trail.c.id)).where(trail.c.transaction_id == at)
        change_id = session.execute(last, bind_arguments=dict(subject.bind_arguments)).scalar()
        if change_id is None:
            raise RetrievalError("at is the id of a transaction that the trail has no change of.")
        return Moment(at, change_id)
    return Moment(at, at)


def first_moment(at: At, session: Session, subject: Subject) -> Moment:
    """Return the moment *at*; now is fixed, so that every page is of the same moment."""
    if at is not None:
        return moment_of(at, session, subject)
    last = select(func.max(subject.trail.c.id))
    return Moment(None, session.execute(last, bind_arguments=dict(subject.bind_arguments)).scalar() or 0)


# --- one table's rows ------------------------------------------------------------------------------------------------


def _of(trail: FromClause, part: Part, texts: Sequence[str]) -> list[ColumnElement[bool]]:
    return [trail.c.resource_type.in_(part.resource.labels), trail.c.resource_id.in_(texts)]


def _select_until(trail: Table, part: Part, texts: Sequence[str], moment: Moment) -> Select[Any]:
    """
    Return the query for the changes of some rows up to a moment, oldest first.

    It begins with the last one that tells the whole row: what was before isn't read.
    """
    earlier = trail.alias("earlier")
    starts = (
        select(earlier.c.resource_id, func.max(earlier.c.id).label("start"))
        .where(*_of(earlier, part, texts), earlier.c.operation.in_(COMPLETE), moment.includes(earlier))
        .group_by(earlier.c.resource_id)
        .subquery("starts")
    )
    columns = trail.c
    return (
        select(columns.resource_id, columns.id, columns.operation, columns.old_values, columns.new_values)
        .join_from(trail, starts, starts.c.resource_id == columns.resource_id, isouter=True)
        .where(*_of(trail, part, texts), moment.includes(trail), columns.id >= func.coalesce(starts.c.start, 0))
        .order_by(columns.resource_id, columns.id)
    )


def stored_change(part: Part, row: Row[Any]) -> StoredChange:
    renamed = part.tracking.renamed
    old, new = present_values(renamed, row.old_values), present_values(renamed, row.new_values)
    return StoredChange(row.id, row.operation, old, new)


def _rows(session: Session, subject: Subject, query: Select[Any]) -> Iterable[Row[Any]]:
    """Read in bounded memory."""
    return session.execute(
        query,
        bind_arguments=dict(subject.bind_arguments),
        execution_options={"yield_per": _ROWS_AT_A_TIME},
    )


def read_part(
    session: Session, subject: Subject, part: Part, texts: Sequence[str], moment: Moment
) -> dict[str, Folded]:
    """
    Return what rows of one table were, by the text of their keys.

    A row that the trail never tells of isn't in it.
    """
    trail = subject.trail
    found: dict[str, Folded] = {}
    rows = _rows(session, subject, _select_until(trail, part, texts, moment))
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
        for row in _rows(session, subject, query):
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
    before = unwound(stored_change(part, row) for row in _rows(session, subject, query))
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
    subject: Subject, past: Past, moment: Moment, related: Mapping[str, tuple[Snapshot, ...]] = _NOTHING_RELATED
) -> Snapshot:
    """Return what users receive of *past*."""
    return Snapshot(
        model=past.model,
        resource_type=subject.base.tracking.label,
        resource_id=subject.base.key_of(past.text),
        at=moment.at,
        change_id=past.change_id,
        state=None if past.state is None else MappingProxyType(past.state),
        related=MappingProxyType(dict(related)),
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
    texts = [row.resource_id for row in _rows(session, subject, query)]
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


# --- what belonged to an object --------------------------------------------------------------------------------------


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
    if each is None:
        raise RetrievalError(
            f"What {relationship} led to can't be known: {column} isn't tracked; name it in tracked_fields."
        )
    return each.value


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
        key = tuple(values[each] for each in part.tracking.resource_key)
        return [part.text_of(key if len(key) > 1 else key[0])]
    codecs = [part.resource.codecs[key] for key in keys]
    stored = [
        None if codec is None else codec.dump(value) for codec, value in zip(codecs, wanted.values(), strict=True)
    ]
    trail = target.trail
    renamed = {present: old for old, present in part.tracking.renamed.items()}
    query = (
        select(trail.c.resource_id, func.min(trail.c.id).label("first"))
        .where(
            trail.c.resource_type.in_(part.resource.labels),
            or_(
                has_values(trail, keys, [stored]),
                has_values(trail, [renamed.get(key, key) for key in keys], [stored]),
            ),
        )
        .group_by(trail.c.resource_id)
        .order_by("first")
    )
    return [row.resource_id for row in _rows(session, target, query)]
