"""What is asked of the trail, as a `Select`; and what it answers, as values. No session in here."""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Row,
    Select,
    Table,
    and_,
    false,
    or_,
    select,
)

from sqlaudit._documents import has_key, has_values
from sqlaudit.codec import Codec, codec_of, decode_value, key_text, key_value
from sqlaudit.exceptions import RetrievalError
from sqlaudit.tracking import Link, Tracking, tracking_of
from sqlaudit.types import FieldChange, OldNew, Operation, SortDirection, SortField

DateRange = tuple[dt.datetime | None, dt.datetime | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A tracked table as retrieval sees it: how its keys and values are read and named."""

    label: str
    key_codecs: tuple[Codec, ...]
    codecs: Mapping[str, Codec | None]
    """By column key; None for a masked column."""
    names: Mapping[str, str]
    """Attribute name by column key."""
    hidden: frozenset[str]
    """Columns that aren't shown: keys that are recorded for the sake of replay alone, and copies of inherited ones."""
    members: ColumnElement[bool] | None = None
    """Which of the table's changes are of the model; None for all of them."""
    links: tuple["LinkedResource", ...] = ()
    labels: tuple[str, ...] = ()
    """Every label that its changes have had, that of today included."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The column key of today by that of older changes."""

    def stored_keys(self, keys: Collection[str]) -> set[str]:
        """Return *keys* of today, and those that they had in older changes."""
        return {*keys, *(old for old, key in self.renamed.items() if key in keys)}

    def key_parts(self, value: Any) -> list[Any]:
        """
        Return the encoded parts of a key as the user gives it.

        Raises:
            RetrievalError: it is no key of this table.
        """
        width = len(self.key_codecs)
        parts = value if isinstance(value, tuple) else (value,)
        if len(parts) != width:
            expected = "one value" if width == 1 else f"a tuple of {width} values"
            raise RetrievalError(f"{self.label} is identified by {expected}; a key of {len(parts)} was given.")
        try:
            return [codec.as_key(_encode_key(codec, part)) for codec, part in zip(self.key_codecs, parts, strict=True)]
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise RetrievalError(
                f"A resource id of {self.label} can't be read from this {kinds}; give the key as the model holds it, "
                f"or its text."
            ) from error


def _encode_key(codec: Codec, value: Any) -> Any:
    if value is None:
        raise ValueError("a key is never None")
    if isinstance(value, str) and codec.as_text:
        try:
            # Text is accepted for any key, in the form in which it is stored.
            return codec.dump(codec.load(value))
        except (TypeError, ValueError, ArithmeticError, LookupError):
            return codec.dump(value)
    return codec.dump(value)


@dataclass(frozen=True, slots=True)
class LinkedResource:
    """An association table, of which a parent shows the rows as additions and removals in one of its fields."""

    attribute: str
    own_keys: tuple[str, ...]
    other_keys: tuple[str, ...]
    codecs: Mapping[str, Codec]
    labels: tuple[str, ...]
    renamed: Mapping[str, str]


def resource_of(
    table: Table,
    tracking: Tracking,
    names: Mapping[str, str],
    dialect: Dialect,
    *,
    inherited: Collection[str] = (),
    members: ColumnElement[bool] | None = None,
) -> Resource:
    """Return what retrieval needs to know of *table*; *inherited* attributes are shown by another table."""
    codecs = {
        key: None if key in tracking.masked else codec_of(table.columns[key].type, dialect) for key in tracking.recorded
    }
    hidden = {key for key in tracking.recorded if key not in tracking.fields or names.get(key) in inherited}
    return Resource(
        label=tracking.label,
        key_codecs=tuple(codec_of(table.columns[key].type, dialect) for key in tracking.resource_key),
        codecs=codecs,
        names=names,
        hidden=frozenset(hidden),
        members=members,
        labels=tracking.labels,
        renamed=tracking.renamed,
        links=tuple(_linked(link, dialect) for link in tracking.links),
    )


def _linked(link: Link, dialect: Dialect) -> LinkedResource:
    columns, tracking = link.table.columns, tracking_of(link.table)
    return LinkedResource(
        attribute=link.attribute,
        own_keys=link.own_keys,
        other_keys=link.other_keys,
        codecs={key: codec_of(columns[key].type, dialect) for key in (*link.own_keys, *link.other_keys)},
        labels=(link.table.name,) if tracking is None else tracking.labels,
        renamed={} if tracking is None else tracking.renamed,
    )


def of_subclass(trail: Table, tracking: Tracking) -> ColumnElement[bool]:
    """Return the criterion that a change is of a row that has one in a subclass's table, too: joined inheritance."""
    rows = trail.alias()
    return trail.c.resource_id.in_(
        select(rows.c.resource_id).where(rows.c.resource_type.in_(tracking.labels)).correlate(None)
    )


def of_identities(trail: Table, tracking: Tracking, key: str, identities: Collection[Any]) -> ColumnElement[bool]:
    """Return the criterion that a change is of a row whose discriminator *key* was one of *identities*."""
    rows = trail.alias()
    stored = [[identity] for identity in identities]
    return trail.c.resource_id.in_(
        select(rows.c.resource_id)
        .where(rows.c.resource_type.in_(tracking.labels), has_values(rows, tracking.renamed, [key], stored))
        .correlate(None)
    )


def present_values(renamed: Mapping[str, str], stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the stored values of one side of a change under the column keys of today."""
    values = dict(stored or {})
    for old in renamed.keys() & values.keys():
        # While a column was copied to another, changes had both: the one of today counts.
        value = values.pop(old)
        values.setdefault(renamed[old], value)
    return values


# --- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """Which changes of a resource are wanted; None means all of them."""

    resource: Resource
    ids: Collection[Any] | None
    keys: Collection[str] | None
    """Column keys."""
    links: Collection[LinkedResource]

    @property
    def known_ids(self) -> list[Any]:
        """The ids that are asked for, as keys of the model."""
        texts = [key_text(self.resource.key_parts(each)) for each in self.ids or ()]
        return [key_value(self.resource.key_codecs, text) for text in texts]


def select_field_changes(
    trail: Table,
    questions: Sequence[Question],
    *,
    user_ids: Collection[str | None] | None,
    date_range: DateRange,
    sort_by: SortField,
    sort_direction: SortDirection,
    limit: int | None,
) -> Select[Any]:
    """
    Return the query for the changes that answer one of *questions*.

    *limit* is how many changes at most are needed, whatever their fields.
    """
    columns = trail.c
    wanted = (criterion for question in questions for criterion in _criteria(trail, question))
    query = select(trail).where(or_(false(), *wanted))
    if user_ids is not None:
        query = query.where(among_users(columns.changed_by, user_ids))
    start, end = date_range
    if start is not None:
        query = query.where(columns.recorded_at >= start)
    if end is not None:
        query = query.where(columns.recorded_at <= end)
    # The ids are in the order of time, and no two changes have the same.
    order = [columns.id] if sort_by == "timestamp" else [columns[sort_by], columns.id]
    query = query.order_by(*(column.desc() if sort_direction == "desc" else column.asc() for column in order))
    return query if limit is None else query.limit(limit)


def among_users(column: ColumnElement[Any], ids: Collection[str | None]) -> ColumnElement[bool]:
    """Return the criterion that *column* has one of *ids*, None for nobody."""
    known = column.in_(sorted(each for each in ids if each is not None))
    return or_(known, column.is_(None)) if None in ids else known


def _criteria(trail: Table, question: Question) -> Iterator[ColumnElement[bool]]:
    columns, resource = trail.c, question.resource
    ids = None if question.ids is None else [resource.key_parts(each) for each in question.ids]
    if question.keys is None or question.keys:
        own: list[ColumnElement[bool]] = [columns.resource_type.in_(resource.labels)]
        if ids is not None:
            own.append(columns.resource_id.in_(sorted({key_text(parts) for parts in ids})))
        if resource.members is not None:
            own.append(resource.members)
        sides = (columns.new_values, columns.old_values)
        if question.keys is not None:
            stored = sorted(resource.stored_keys(question.keys))
            own.append(or_(*(has_key(side, key) for key in stored for side in sides)))
        elif not resource.codecs.keys() - resource.hidden:
            # A table of which nothing is shown but what another shows: it would be counted by the limit.
            own.append(false())
        yield and_(*own)
    for link in question.links:
        added_or_removed = columns.operation.in_([Operation.INSERT.value, Operation.DELETE.value])
        criterion = and_(columns.resource_type.in_(link.labels), added_or_removed)
        if ids is not None:
            criterion = and_(criterion, has_values(trail, link.renamed, link.own_keys, ids))
        yield criterion


# --- answers ---------------------------------------------------------------------------------------------------------


def field_changes(
    rows: Iterable[Row[Any]], questions: Sequence[Question], user_codec: Codec | None, zone: dt.tzinfo
) -> Iterator[FieldChange]:
    """Yield the field changes of stored changes, as far as *questions* ask for them."""
    own = {label: question for question in questions for label in question.resource.labels}
    linked = [(question, link) for question in questions for link in question.links]
    for row in rows:
        shared = facts_of(row, user_codec, zone)
        if row.resource_type in own:
            yield from _own_field_changes(row, own[row.resource_type], shared)
        for question, link in linked:
            if row.resource_type in link.labels:
                change = _linked_field_change(row, question.resource, link, shared)
                asked = question.ids is None or change.resource_id in question.known_ids
                if asked and row.operation in (Operation.INSERT, Operation.DELETE):
                    yield change


def facts_of(row: Row[Any], user_codec: Codec | None, zone: dt.tzinfo) -> dict[str, Any]:
    """Return what a stored change tells whatever it is a change of: which, when, who and why."""
    return {
        "change_id": row.id,
        "transaction_id": row.transaction_id,
        "timestamp": row.recorded_at.astimezone(zone),
        "changed_by": user_id_value(user_codec, row.changed_by),
        "impersonated_by": user_id_value(user_codec, row.impersonated_by),
        "reason": row.reason,
        "context": row.context or {},
    }


def fields_of(row: Row[Any], resource: Resource) -> Iterator[tuple[str, str, OldNew]]:
    """Yield column key, attribute name and values of each field that a stored change shows."""
    old, new = (present_values(resource.renamed, side) for side in (row.old_values, row.new_values))
    for key in (*resource.codecs, *sorted((old.keys() | new.keys()) - resource.codecs.keys())):
        if key in resource.hidden or (key not in old and key not in new):
            continue
        codec = resource.codecs.get(key)
        values = (decode_value(codec, side[key]) if key in side else None for side in (old, new))
        yield key, resource.names.get(key, key), OldNew(*values)


def _own_field_changes(row: Row[Any], question: Question, shared: dict[str, Any]) -> Iterator[FieldChange]:
    resource = question.resource
    for key, name, values in fields_of(row, resource):
        if question.keys is not None and key not in question.keys:
            continue
        yield FieldChange(
            **shared,
            operation=Operation(row.operation),
            resource_type=resource.label,
            resource_id=key_value(resource.key_codecs, row.resource_id),
            field_name=name,
            old_value=values.old,
            new_value=values.new,
        )


def _linked_field_change(
    row: Row[Any], resource: Resource, link: LinkedResource, shared: dict[str, Any]
) -> FieldChange:
    """Return what a row of an association table means to the row that it belongs to."""

    def key_in(side: Mapping[str, Any], keys: Sequence[str]) -> Any:
        values = present_values(link.renamed, side)
        parts = tuple(link.codecs[key].load(values[key]) for key in keys)
        return parts[0] if len(parts) == 1 else parts

    return FieldChange(
        **shared,
        operation=Operation.UPDATE,
        resource_type=resource.label,
        resource_id=key_in(row.new_values or row.old_values, link.own_keys),
        field_name=link.attribute,
        old_value=None if row.old_values is None else key_in(row.old_values, link.other_keys),
        new_value=None if row.new_values is None else key_in(row.new_values, link.other_keys),
    )


def user_id_value(codec: Codec | None, text: str | None) -> Any:
    """Return a stored user id as the type of the user model's id; its text, if it isn't one."""
    if text is None or codec is None:
        return text
    try:
        return key_value([codec], text)
    except (TypeError, ValueError, ArithmeticError, LookupError):
        # Before there was this user model, or a system user beside it: still who it was.
        return text
