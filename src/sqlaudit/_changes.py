"""A filter of changes → `Select`, and rows of the trail → `Change`. No session in here."""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Row, Select, Table, and_, false, or_, select, true
from sqlalchemy.sql.elements import Null

from sqlaudit._documents import has_key, has_padded, has_value
from sqlaudit._filters import ChangeFilter, Page
from sqlaudit._relationships import related
from sqlaudit._sources import Source, all_sources, members_of, sources_of
from sqlaudit._statements import Resource, among_users, facts_of, fields_of
from sqlaudit.codec import JSON_NULL, Codec, JSONValue, decode_value, key_text, key_value
from sqlaudit.exceptions import RetrievalError, UnknownFieldError
from sqlaudit.types import Change, Model, OldNew, Operation


@dataclass(frozen=True, slots=True)
class Scope:
    """A tracked table, and which of its changes are wanted as far as it is concerned."""

    source: Source
    resource: Resource
    criterion: ColumnElement[bool]


def scopes_of(wanted: ChangeFilter, dialect: Dialect, trail: Table) -> list[Scope]:
    """
    Return the tables whose changes are wanted.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: none of them has a field that is named.
        RetrievalError: a key or value can't be one of that model.
    """
    scopes = list(_unfiltered(wanted, dialect, trail))
    known = {name for scope in scopes for name in scope.source.field_names}
    for argument, names in (("fields", wanted.fields or ()), ("old", wanted.old), ("new", wanted.new)):
        unknown = set(names) - known
        if unknown:
            raise UnknownFieldError(_name_of(wanted), argument, unknown, known)
    return [replace(scope, criterion=and_(scope.criterion, *_field_criteria(wanted, scope, trail))) for scope in scopes]


def _unfiltered(wanted: ChangeFilter, dialect: Dialect, trail: Table) -> Iterator[Scope]:
    if wanted.models is None:
        for source in all_sources():
            yield Scope(source, source.resource(dialect), trail.c.resource_type.in_(source.tracking.labels))
        return
    for model in wanted.models:
        for source in sources_of(model):
            resource = source.resource(dialect)
            own: list[ColumnElement[bool]] = [trail.c.resource_type.in_(source.tracking.labels)]
            if wanted.resource_ids is not None:
                texts = {key_text(resource.key_parts(each)) for each in wanted.resource_ids}
                own.append(trail.c.resource_id.in_(sorted(texts)))
            members = members_of(model, source, dialect, trail)
            yield Scope(source, resource, and_(*own, true() if members is None else members))
    for name in wanted.include:
        for source, criterion in related(wanted, name, dialect, trail):
            yield Scope(source, source.resource(dialect), criterion)


def _name_of(wanted: ChangeFilter) -> str:
    if wanted.models is None:
        return "any tracked model"
    names = [each.name if isinstance(each, Table) else each.__name__ for each in wanted.models]
    return f"the trail of {' or '.join([*names, *wanted.include])}"


def _field_criteria(wanted: ChangeFilter, scope: Scope, trail: Table) -> Iterator[ColumnElement[bool]]:
    """Yield what the fields that are named ask of a table; one that hasn't got them has no such change."""
    keys = scope.source.field_names
    sides = {"old": trail.c.old_values, "new": trail.c.new_values}
    if wanted.fields is not None:
        named = sorted(scope.resource.stored_keys([keys[name] for name in wanted.fields if name in keys]))
        yield or_(false(), *(has_key(side, key) for key in named for side in sides.values()))
    for argument, values in (("old", wanted.old), ("new", wanted.new)):
        for name, value in values.items():
            if name not in keys:
                yield false()
                continue
            codec = scope.resource.codecs[keys[name]]
            if codec is None:
                raise RetrievalError(
                    f"{argument} names {name!r}, whose values are withheld from the trail of "
                    f"{scope.resource.label}; ask with fields= whether it changed."
                )
            stored_keys = sorted(scope.resource.stored_keys([keys[name]]))
            what = f"{scope.resource.label}.{name}"
            yield or_(*(_same(codec, sides[argument], key, value, what) for key in stored_keys))


def _same(codec: Codec, side: ColumnElement[Any], key: str, value: Any, name: str) -> ColumnElement[bool]:
    if isinstance(value, Null):
        return has_value(side, key, None)
    try:
        stored = codec.dump(value)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise RetrievalError(
            f"A value of {name} can't be made of a {type(value).__name__}; give one of the type that the model holds."
        ) from error
    if codec.is_padded and isinstance(stored, str):
        return has_padded(side, key, stored)
    if codec.json and value is None:
        # Python reads SQL NULL and the JSON value null both as None.
        null: JSONValue = codec.as_read.dump(JSON_NULL)
        return or_(has_value(side, key, None), has_value(side, key, null))
    return has_value(side, key, stored)


def criterion_of(wanted: ChangeFilter, scopes: Sequence[Scope], trail: Table) -> ColumnElement[bool]:
    """Return the criterion that a change is wanted."""
    columns = trail.c
    criteria: list[ColumnElement[bool]] = []
    if not wanted.asks_for_all:
        criteria.append(or_(false(), *(scope.criterion for scope in scopes)))
    if wanted.operations is not None:
        criteria.append(columns.operation.in_(sorted(each.value for each in wanted.operations)))
    if wanted.user_ids is not None:
        criteria.append(among_users(columns.changed_by, wanted.user_ids))
    if wanted.impersonators is not None:
        criteria.append(among_users(columns.impersonated_by, wanted.impersonators))
    if wanted.reason is not None:
        criteria.append(columns.reason == wanted.reason)
    criteria.extend(_has_fact(columns.context, name, value) for name, value in wanted.context.items())
    if wanted.transaction_ids is not None:
        criteria.append(columns.transaction_id.in_(sorted(wanted.transaction_ids)))
    for column, (start, end) in ((columns.recorded_at, wanted.date_range), (columns.id, wanted.id_range)):
        if start is not None:
            criteria.append(column >= start)
        if end is not None:
            criteria.append(column <= end)
    return and_(true(), *criteria)


def _has_fact(context: ColumnElement[Any], name: str, value: Any) -> ColumnElement[bool]:
    try:
        return has_value(context, name, value)
    except (TypeError, ValueError) as error:
        raise RetrievalError(
            f"The fact {name} can't be a {type(value).__name__}; expected a str, int, float, bool, None, or a list or "
            f"dict of them."
        ) from error


def select_page(query: Select[Any], trail: Table, page: Page) -> Select[Any]:
    """Return *query* for one page; from the end of it, if the page is the last one before an id."""
    id_ = trail.c.id
    if page.after is not None:
        query = query.where(id_ < page.after if page.newest_first else id_ > page.after)
    if page.before is not None:
        query = query.where(id_ > page.before if page.newest_first else id_ < page.before)
    query = query.order_by(id_.desc() if page.newest_first is not page.from_end else id_.asc())
    return query if page.limit is None else query.limit(page.limit)


def select_wanted(wanted: ChangeFilter, scopes: Sequence[Scope], trail: Table) -> Select[Any]:
    """Return the query for all changes that are wanted, in no order."""
    return select(trail).where(criterion_of(wanted, scopes, trail))


# --- answers ---------------------------------------------------------------------------------------------------------


def changes_in(
    rows: Iterable[Row[Any]], scopes: Iterable[Scope], user_codec: Codec | None, zone: dt.tzinfo
) -> Iterator[Change]:
    """Yield stored changes as they are told to users."""
    by_label: dict[str, dict[Table, Scope]] = {}
    for scope in scopes:
        for label in scope.resource.labels:
            by_label.setdefault(label, {})[scope.source.table] = scope
    for row in rows:
        told = [_told(row, scope) for scope in _fitting(row, by_label.get(row.resource_type, {}).values())]
        told = told or [_as_stored(row)]
        what = told[0] if len(told) == 1 else _agreed(told, _as_stored(row))
        yield Change(
            **facts_of(row, user_codec, zone),
            operation=Operation(row.operation),
            model=what.model,
            resource_type=what.resource_type,
            resource_id=what.resource_id,
            fields=what.fields,
        )


def _fitting(row: Row[Any], scopes: Collection[Scope]) -> list[Scope]:
    """Return those of several tables with one label that have all the columns that a change tells of; all, if none."""
    keys = {*(row.old_values or ()), *(row.new_values or ())}
    known = [(each, {*each.resource.codecs, *each.resource.renamed}) for each in scopes]
    return [each for each, its in known if keys <= its] or list(scopes)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a table's declaration makes of a change."""

    model: Model | None
    resource_type: str
    resource_id: Any
    fields: Mapping[str, OldNew]
    by_key: Mapping[str, tuple[str, OldNew]]
    """Name and values, by column key."""


def _told(row: Row[Any], scope: Scope) -> _Told:
    resource = scope.resource
    by_key = {key: (name, values) for key, name, values in fields_of(row, resource)}
    try:
        resource_id = key_value(resource.key_codecs, row.resource_id)
    except (TypeError, ValueError, ArithmeticError, LookupError):
        # The key was of another type then.
        resource_id = row.resource_id
    return _Told(scope.source.owner, resource.label, resource_id, dict(by_key.values()), by_key)


def _as_stored(row: Row[Any]) -> _Told:
    old, new = row.old_values or {}, row.new_values or {}

    def stored(side: Mapping[str, Any], key: str) -> Any:
        return decode_value(None, side[key]) if key in side else None

    by_key = {key: (key, OldNew(stored(old, key), stored(new, key))) for key in sorted(old.keys() | new.keys())}
    return _Told(None, row.resource_type, row.resource_id, dict(by_key.values()), by_key)


def _agreed(told: Sequence[_Told], stored: _Told) -> _Told:
    """
    Return what tables of one label, of several `MetaData`, agree on; the stored form of everything else.

    Which of them a change is of is written nowhere: name the model.
    """

    def same(values: Sequence[Any], types: Sequence[Any]) -> bool:
        return all(each == values[0] for each in values) and all(each == types[0] for each in types)

    by_key: dict[str, tuple[str, OldNew]] = {}
    for key, kept in stored.by_key.items():
        known = [each.by_key[key] for each in told if key in each.by_key]
        agreed = same(known, [[type(value) for value in values] for _, values in known])
        by_key[key] = known[0] if known and agreed else kept
    ids = [each.resource_id for each in told]
    resource_id = ids[0] if same(ids, [type(each) for each in ids]) else stored.resource_id
    return _Told(None, stored.resource_type, resource_id, dict(by_key.values()), by_key)
