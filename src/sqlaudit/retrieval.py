"""Reading the trail."""

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Literal, get_args, overload

from sqlalchemy import Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, Session

from sqlaudit import _bridge
from sqlaudit._statements import DateRange, field_changes, resource_of, select_field_changes
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
        resources = [resource_of(table, tracking, named, dialect) for table, tracking, named in sources]
        keys = [
            None if names is None else {key for key, name in resource.names.items() if name in names}
            for resource in resources
        ]
        asked = [(resource, ids, wanted) for resource, wanted in zip(resources, keys, strict=True) if wanted != set()]
        query = select_field_changes(
            asked,
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
        found = field_changes(
            rows,
            {resource.label: (resource, wanted) for resource, _, wanted in asked},
            None if user_column is None else codec_of(user_column.type, dialect),
            config.zone,
        )
        return list(found)[first : None if count is None else first + count]

    return operation


def _sources(model: Any) -> list[tuple[Table, Tracking, dict[str, str]]]:
    """Return the tracked tables of *model* and its subclasses, with attribute names by column key."""
    if isinstance(model, Table):
        tracking = tracking_of(model)
        if tracking is None:
            raise UntrackedError(f"The table {model.fullname}")
        return [(model, tracking, {key: key for key in model.columns.keys()})]
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise RetrievalError(f"model_class is {model!r}; expected a mapped class or a tracked Table.")
    sources: dict[Table, tuple[Table, Tracking, dict[str, str]]] = {}
    for each in mapper.self_and_descendants:
        attributes = {column: name.key for name in each.column_attrs for column in name.columns}
        for table, tracking in tracked_tables(each):
            names = sources.setdefault(table, (table, tracking, {}))[2]
            names.update({column.key: attributes[column] for column in table.columns if column in attributes})
    if not sources:
        raise UntrackedError(model.__name__)
    return list(sources.values())


def _names(fields: Any) -> set[str] | None:
    if fields is None:
        return None
    names = [fields] if isinstance(fields, str) else fields
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise RetrievalError(f"filter_fields is {fields!r}; expected a field's name or a list of them.")
    return set(names)


def _check_fields(model: Any, names: set[str], sources: list[tuple[Table, Tracking, dict[str, str]]]) -> None:
    tracked = {named.get(key, key) for _, tracking, named in sources for key in tracking.fields}
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
