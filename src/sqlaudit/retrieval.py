"""Reading the trail."""

from collections.abc import Awaitable, Callable
from typing import Any, overload

from sqlalchemy import Dialect, Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlaudit import _bridge
from sqlaudit._arguments import check_choice, date_range_in, names_in, resource_ids_in, user_ids_in, whole_number_in
from sqlaudit._asking import (
    count_changes,
    count_changes_by,
    count_changes_by_sync,
    count_changes_sync,
    get_changes,
    get_changes_sync,
    select_changes,
    stream_changes,
    stream_changes_sync,
)
from sqlaudit._sources import Source, members_of, sources_of
from sqlaudit._statements import (
    DateRange,
    Question,
    field_changes,
    select_field_changes,
)
from sqlaudit.codec import codec_of
from sqlaudit.config import SQLAuditConfig, get_config, user_id_column
from sqlaudit.exceptions import UnknownFieldError
from sqlaudit.types import FieldChange, ResourceIdType, SortDirection, SortField, UserIdType

__all__ = [
    "count_changes",
    "count_changes_by",
    "count_changes_by_sync",
    "count_changes_sync",
    "get_changes",
    "get_changes_sync",
    "get_resource_changes",
    "get_resource_changes_sync",
    "select_changes",
    "stream_changes",
    "stream_changes_sync",
]

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
    sources = sources_of(model)
    names = names_in("filter_fields", filter_fields)
    if names is not None:
        _check_fields(model, names, sources)
    user_ids = user_ids_in("filter_user_ids", filter_user_ids)
    date_range = date_range_in("filter_date_range", filter_date_range, config.zone)
    first, count = whole_number_in("offset", offset) or 0, whole_number_in("limit", limit)
    sort_by = "timestamp" if sort_by is None else sort_by
    check_choice("sort_by", sort_by, SortField)
    check_choice("sort_direction", sort_direction, SortDirection)
    ids = resource_ids_in(filter_resource_ids)

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


def _question(
    model: Any, source: Source, ids: list[Any] | None, names: frozenset[str] | None, dialect: Dialect, trail: Table
) -> Question:
    members = members_of(model, source, dialect, trail)
    resource = source.resource(dialect, inherited=source.inherited, members=members)
    if names is None:
        return Question(resource, ids, None, resource.links)
    keys = {key for key in source.tracking.fields if source.names.get(key, key) in names} - resource.hidden
    return Question(resource, ids, keys, [link for link in resource.links if link.attribute in names])


def _check_fields(model: Any, names: frozenset[str], sources: list[Source]) -> None:
    tracked = {source.names.get(key, key) for source in sources for key in source.tracking.fields}
    tracked |= {link.attribute for source in sources for link in source.tracking.links}
    unknown = names - tracked
    if unknown:
        raise UnknownFieldError(f"the trail of {getattr(model, '__name__', model)}", "filter_fields", unknown, tracked)
