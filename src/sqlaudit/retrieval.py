"""Reading the trail."""

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

from sqlalchemy import ColumnElement, Dialect, Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, Session

from sqlaudit import _bridge
from sqlaudit._statements import (
    DateRange,
    Question,
    field_changes,
    of_identities,
    of_subclass,
    resource_of,
    select_field_changes,
)
from sqlaudit.codec import codec_of
from sqlaudit.config import SQLAuditConfig, get_config, user_id_column
from sqlaudit.exceptions import RetrievalError, UnknownFieldError, UntrackedError
from sqlaudit.tracking import Tracking, tracked_tables, tracking_of
from sqlaudit.types import FieldChange, ResourceIdType, SortDirection, SortField, UserIdType

__all__ = ["get_resource_changes", "get_resource_changes_sync"]

ResourceIds = ResourceIdType | list[ResourceIdType] | None
UserIds = UserIdType | list[UserIdType] | None


@overload
def get_resource_changes(
    model_class: type[Any] | Table,
    filter_resource_ids: ResourceIds = None,
    *,
    session: Session,
    filter_fields: str | list[str] | None = None,
    filter_date_range: DateRange | None = None,
    filter_user_ids: UserIds = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_by: SortField | None = "timestamp",
    sort_direction: SortDirection = "desc",
    config: SQLAuditConfig | None = None,
) -> list[FieldChange]: ...
@overload
def get_resource_changes(
    model_class: type[Any] | Table,
    filter_resource_ids: ResourceIds = None,
    session: AsyncSession | None = None,
    filter_fields: str | list[str] | None = None,
    filter_date_range: DateRange | None = None,
    filter_user_ids: UserIds = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_by: SortField | None = "timestamp",
    sort_direction: SortDirection = "desc",
    *,
    config: SQLAuditConfig | None = None,
) -> Awaitable[list[FieldChange]]: ...
@overload
def get_resource_changes(
    model_class: type[Any] | Table,
    filter_resource_ids: ResourceIds,
    session: Session,
    filter_fields: str | list[str] | None = None,
    filter_date_range: DateRange | None = None,
    filter_user_ids: UserIds = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_by: SortField | None = "timestamp",
    sort_direction: SortDirection = "desc",
    *,
    config: SQLAuditConfig | None = None,
) -> list[FieldChange]: ...
def get_resource_changes(
    model_class: type[Any] | Table,
    filter_resource_ids: ResourceIds = None,
    session: AsyncSession | Session | None = None,
    filter_fields: str | list[str] | None = None,
    filter_date_range: DateRange | None = None,
    filter_user_ids: UserIds = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_by: SortField | None = "timestamp",
    sort_direction: SortDirection = "desc",
    *,
    config: SQLAuditConfig | None = None,
) -> list[FieldChange] | Awaitable[list[FieldChange]]:
    """
    Return what happened to the rows of a model, field by field, newest first.

    Await it with an `AsyncSession`, or without a session when the configured
    factory makes those. With a `Session`, or a factory of such, it returns the
    list itself, as SQLAudit does; `get_resource_changes_sync` says so in its type.

    Args:
        model_class: a tracked model, or a tracked Core table.
        filter_resource_ids: a key, or a list of keys: the key's Python value or
            its text, a tuple for a key of several columns. None means all rows,
            an empty list none.
        session: what to read with; pending objects are flushed if it
            autoflushes. None opens a session of the configured factory, and closes it.
        filter_fields: an attribute's name, or a list of them; None means all.
        filter_date_range: from and to, both inclusive; None leaves an end open.
            Naive datetimes are in the configured zone.
        filter_user_ids: who made the change, or a list of them; None means all.
        limit: at most so many field changes.
        offset: leave out so many field changes first.
        sort_by: what to sort by.
        sort_direction: "desc" or "asc".
        config: instead of the default configuration.

    Raises:
        UntrackedError: the model isn't tracked.
        UnknownFieldError: the model has no such field.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    operation = _operation(
        model_class,
        filter_resource_ids,
        filter_fields,
        filter_date_range,
        filter_user_ids,
        limit,
        offset,
        sort_by,
        sort_direction,
        config,
    )
    return _bridge.run(operation, session, config.session_factory)


def get_resource_changes_sync(
    model_class: type[Any] | Table,
    filter_resource_ids: ResourceIds = None,
    session: Session | None = None,
    filter_fields: str | list[str] | None = None,
    filter_date_range: DateRange | None = None,
    filter_user_ids: UserIds = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_by: SortField | None = "timestamp",
    sort_direction: SortDirection = "desc",
    *,
    config: SQLAuditConfig | None = None,
) -> list[FieldChange]:
    """
    Return what happened to the rows of a model: `get_resource_changes` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    operation = _operation(
        model_class,
        filter_resource_ids,
        filter_fields,
        filter_date_range,
        filter_user_ids,
        limit,
        offset,
        sort_by,
        sort_direction,
        config,
    )
    return _bridge.run_sync(operation, session, config.session_factory)


def _operation(
    model: Any,
    filter_resource_ids: Any,
    filter_fields: Any,
    filter_date_range: Any,
    filter_user_ids: Any,
    limit: Any,
    offset: Any,
    sort_by: Any,
    sort_direction: Any,
    config: SQLAuditConfig,
) -> Callable[[Session], list[FieldChange]]:
    """Check the arguments, before any session is opened, and return what is to be done with one."""
    sources = _sources(model)
    names = _names(filter_fields)
    if names is not None:
        _check_fields(model, names, sources)
    user_ids = _user_ids(filter_user_ids)
    date_range = _date_range(filter_date_range, config.zone)
    first, count = _count("offset", offset) or 0, _count("limit", limit)
    sort_by = "timestamp" if sort_by is None else sort_by
    _check_choice("sort_by", sort_by, SortField)
    _check_choice("sort_direction", sort_direction, SortDirection)
    ids = _ids(filter_resource_ids)

    def operation(session: Session) -> list[FieldChange]:
        bind_arguments = {"clause": model} if isinstance(model, Table) else {"mapper": inspect(model)}
        dialect = session.get_bind(**bind_arguments).dialect
        questions = [_question(model, source, ids, names, dialect, config.trail) for source in sources]
        query = select_field_changes(
            config.trail,
            questions,
            user_ids=user_ids,
            date_range=date_range,
            sort_by=sort_by,
            sort_direction=sort_direction,
            # Every change has at least one of the wanted fields.
            limit=None if count is None else first + count,
        )
        if session.autoflush:
            session.flush()
        rows = session.execute(query, bind_arguments=bind_arguments).all()
        user_column = user_id_column(config)
        user_codec = None if user_column is None else codec_of(user_column.type, dialect)
        found = field_changes(rows, questions, user_codec, config.zone)
        return list(found)[first : None if count is None else first + count]

    return operation


@dataclass(slots=True)
class _Source:
    """A tracked table in which rows of the model are."""

    table: Table
    tracking: Tracking
    names: dict[str, str]
    """Attribute name by column key."""
    inherited: set[str]
    """Attributes that a base table shows already."""


def _sources(model: Any) -> list[_Source]:
    """Return the tracked tables of *model* and its subclasses, with attribute names by column key."""
    if isinstance(model, Table):
        tracking = tracking_of(model)
        if tracking is None:
            raise UntrackedError(f"The table {model.fullname}", is_table=True)
        return [_Source(model, tracking, {key: key for key in model.columns.keys()}, set())]
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise RetrievalError(f"model_class is {model!r}; expected a mapped class or a tracked Table.")
    sources: dict[Table, _Source] = {}
    for each in mapper.self_and_descendants:
        attributes = {column: name.key for name in each.column_attrs for column in name.columns}
        shown: set[str] = set()
        for table, tracking in tracked_tables(each):
            names = {column.key: attributes[column] for column in table.columns if column in attributes}
            source = sources.setdefault(table, _Source(table, tracking, {}, set(shown)))
            source.names.update(names)
            shown.update(names[key] for key in tracking.fields if key in names)
    if not sources:
        raise UntrackedError(model.__name__)
    return list(sources.values())


def _members(model: Any, source: _Source, dialect: Dialect, trail: Table) -> ColumnElement[bool] | None:
    """Return which changes of a table are of *model*'s rows, if it shares the table with its base classes."""
    if isinstance(model, Table):
        return None
    mapper: Mapper[Any] = inspect(model)
    if mapper.inherits is None or source.table not in mapper.inherits.tables:
        return None
    own = tracking_of(mapper.local_table)
    if own is not None and mapper.local_table is not source.table and mapper.local_table not in mapper.inherits.tables:
        return of_subclass(trail, own)
    discriminator = mapper.polymorphic_on
    for table, tracking in tracked_tables(mapper):
        for key in tracking.recorded:
            if table.columns[key] is discriminator:
                identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
                codec = codec_of(table.columns[key].type, dialect)
                return of_identities(
                    trail, tracking, key, [codec.dump(each) for each in identities if each is not None]
                )
    raise RetrievalError(
        f"The trail can't tell the rows of {mapper.class_.__name__} from those of its base class, because their "
        f"discriminator isn't tracked; ask for {mapper.inherits.class_.__name__}, or track the discriminator."
    )


def _question(
    model: Any, source: _Source, ids: list[Any] | None, names: set[str] | None, dialect: Dialect, trail: Table
) -> Question:
    members = _members(model, source, dialect, trail)
    resource = resource_of(
        source.table, source.tracking, source.names, dialect, inherited=source.inherited, members=members
    )
    if names is None:
        return Question(resource, ids, None, resource.links)
    keys = {key for key in source.tracking.fields if source.names.get(key, key) in names} - resource.hidden
    return Question(resource, ids, keys, [link for link in resource.links if link.attribute in names])


def _names(fields: Any) -> set[str] | None:
    if fields is None:
        return None
    names = [fields] if isinstance(fields, str) else fields
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise RetrievalError(f"filter_fields is {fields!r}; expected a field's name or a list of them.")
    return set(names)


def _check_fields(model: Any, names: set[str], sources: list[_Source]) -> None:
    tracked = {source.names.get(key, key) for source in sources for key in source.tracking.fields}
    tracked |= {link.attribute for source in sources for link in source.tracking.links}
    unknown = names - tracked
    if unknown:
        raise UnknownFieldError(f"the trail of {getattr(model, '__name__', model)}", "filter_fields", unknown, tracked)


def _ids(resource_ids: Any) -> list[Any] | None:
    if resource_ids is None:
        return None
    return list(resource_ids) if isinstance(resource_ids, (list, set, frozenset)) else [resource_ids]


def _user_ids(user_ids: Any) -> set[str] | None:
    if user_ids is None:
        return None
    listed = user_ids if isinstance(user_ids, (list, tuple, set, frozenset)) else [user_ids]
    for each in listed:
        if isinstance(each, bool) or not isinstance(each, (str, int, uuid.UUID)):
            raise RetrievalError(f"filter_user_ids holds a {type(each).__name__}; expected a str, int or UUID.")
    return {str(each) for each in listed}


def _date_range(date_range: Any, zone: dt.tzinfo) -> DateRange:
    if date_range is None:
        return None, None
    if not isinstance(date_range, (tuple, list)) or len(date_range) != 2:
        raise RetrievalError(
            f"filter_date_range is {date_range!r}; expected a pair of datetimes, None for an open end."
        )
    for each in date_range:
        if each is not None and not isinstance(each, dt.datetime):
            raise RetrievalError(f"filter_date_range holds a {type(each).__name__}; expected a datetime or None.")
    start, end = (each if each is None or each.tzinfo is not None else each.replace(tzinfo=zone) for each in date_range)
    if start is not None and end is not None and start > end:
        raise RetrievalError(f"filter_date_range ends ({end}) before it starts ({start}); give the earlier one first.")
    return start, end


def _count(argument: Literal["limit", "offset"], value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RetrievalError(f"{argument} is {value!r}; expected a whole number from 0, or None.")
    return value


def _check_choice(argument: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise RetrievalError(f"{argument} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}.")
