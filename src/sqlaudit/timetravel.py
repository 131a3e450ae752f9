"""The trail as something one looks into, compares and writes back: snapshots, diffs, restoring, undoing."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, overload

from sqlalchemy import MetaData, Table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlaudit import _bridge
from sqlaudit._as_of import as_instance
from sqlaudit._graph import read_related
from sqlaudit._replay import MISSING, FieldDiff, Missing
from sqlaudit._restore import restore
from sqlaudit._snapshots import (
    SNAPSHOTS_PER_PAGE,
    Past,
    Snapshot,
    differ,
    matcher,
    read_page,
    read_past,
    snapshot_of,
)
from sqlaudit._subjects import (
    At,
    Moment,
    Subject,
    check_model,
    check_names,
    checked_at,
    first_moment,
    moment_of,
    subject_of,
)
from sqlaudit._undo import Conflict, undo
from sqlaudit.config import SQLAuditConfig, get_config
from sqlaudit.exceptions import RetrievalError
from sqlaudit.types import ResourceIdType

__all__ = [
    "MISSING",
    "At",
    "Conflict",
    "FieldDiff",
    "Missing",
    "Snapshot",
    "diff_resource",
    "diff_resource_sync",
    "get_resource_snapshot",
    "get_resource_snapshot_sync",
    "get_snapshots",
    "get_snapshots_sync",
    "load_all_as_of",
    "load_all_as_of_sync",
    "load_as_of",
    "load_as_of_sync",
    "restore_resource",
    "restore_resource_sync",
    "undo_transaction",
    "undo_transaction_sync",
]

Model = TypeVar("Model")
Result = TypeVar("Result")

_NO_VALUES: Final[Mapping[str, Any]] = MappingProxyType({})


# --- snapshots -------------------------------------------------------------------------------------------------------


@overload
def get_resource_snapshot(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    *,
    session: Session,
    at: At = None,
    include: Collection[str] = (),
    config: SQLAuditConfig | None = None,
) -> Snapshot: ...
@overload
def get_resource_snapshot(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    *,
    session: AsyncSession | None = None,
    at: At = None,
    include: Collection[str] = (),
    config: SQLAuditConfig | None = None,
) -> Awaitable[Snapshot]: ...
def get_resource_snapshot(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    *,
    session: AsyncSession | Session | None = None,
    at: At = None,
    include: Collection[str] = (),
    config: SQLAuditConfig | None = None,
) -> Snapshot | Awaitable[Snapshot]:
    """
    Return what a row was at a moment, by the trail alone.

    Await it with an `AsyncSession`, or without a session when the configured
    factory makes those; with a `Session` it returns the `Snapshot` itself.

    A row that didn't exist then, before its insert, after its delete or between
    two lives, has a `Snapshot` whose `state` is None. The state of a model of
    several tables is that of all of them.

    Args:
        model: a tracked model, or a tracked Core table.
        resource_id: the key's Python value or its text, a tuple for a key of
            several columns.
        session: what to read with; pending objects are flushed if it
            autoflushes. None opens a session of the configured factory, and closes it.
        at: a datetime, inclusive (a naive one is in the configured zone); the
            id of a change, for the state just after it; the UUID of a
            transaction, for the state after its last change; None for now.
        include: relationships whose rows as of then come along, in
            `Snapshot.related`. Both sides must be tracked, and the rows of a
            many-to-many relationship's secondary table, too.
        config: instead of the default configuration.

    Raises:
        UnknownStateError: the trail doesn't tell what the row was then; it existed before auditing began.
        UntrackedError: the model isn't tracked.
        UnknownFieldError: the model has no such relationship.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    return _bridge.run(_read_snapshot(model, resource_id, at, include, config), session, config.session_factory)


def get_resource_snapshot_sync(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    *,
    session: Session | None = None,
    at: At = None,
    include: Collection[str] = (),
    config: SQLAuditConfig | None = None,
) -> Snapshot:
    """
    Return what a row was at a moment: `get_resource_snapshot` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    return _bridge.run_sync(_read_snapshot(model, resource_id, at, include, config), session, config.session_factory)


def _read_snapshot(
    model: Any, resource_id: Any, at: Any, include: Any, config: SQLAuditConfig
) -> Callable[[Session], Snapshot]:
    names = _checked_names("include", include)

    def read(session: Session, subject: Subject, moment: Moment) -> Snapshot:
        past = read_past(session, subject, resource_id, moment)
        return snapshot_of(subject, past, moment, read_related(session, subject, past, moment, names))

    return _at_moment(model, at, config, read)


@overload
def get_snapshots(
    model: type[Any] | Table,
    *,
    session: Session,
    at: At = None,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Snapshot]: ...
@overload
def get_snapshots(
    model: type[Any] | Table,
    *,
    session: AsyncSession | None = None,
    at: At = None,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> AsyncIterator[Snapshot]: ...
def get_snapshots(
    model: type[Any] | Table,
    *,
    session: AsyncSession | Session | None = None,
    at: At = None,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Snapshot] | AsyncIterator[Snapshot]:
    """
    Iterate over what the rows of a model were at a moment, those that there were then.

    ``async for`` with an `AsyncSession`, or without a session when the
    configured factory makes those; ``for`` with a `Session`. They come in the
    order of their keys' texts, and are read page by page: memory doesn't grow
    with their number. With None for *at*, the moment is that of the first page.

    Args:
        model: a tracked model, or a tracked Core table.
        session: what to read with, as for `get_resource_snapshot`.
        at: the moment, as for `get_resource_snapshot`.
        where: values that fields had then, all of them.
        skip_unknown: leave out rows of which the trail doesn't tell what they
            were, instead of raising an `UnknownStateError`. Rows that the trail
            never mentions are left out always.
        config: instead of the default configuration.

    Raises:
        UnknownStateError: while iterating: the trail doesn't tell what a row was then.
        UntrackedError: the model isn't tracked.
        UnknownFieldError: while iterating: *where* names a field that the model doesn't have.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    pages = _read_pages(model, at, where, config, _as_snapshot, skip_unknown=skip_unknown)
    return _bridge.stream(pages, session, config.session_factory)


def get_snapshots_sync(
    model: type[Any] | Table,
    *,
    session: Session | None = None,
    at: At = None,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Snapshot]:
    """
    Iterate over what the rows of a model were: `get_snapshots` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    pages = _read_pages(model, at, where, config, _as_snapshot, skip_unknown=skip_unknown)
    return _bridge.stream_sync(pages, session, config.session_factory)


def _as_snapshot(subject: Subject, past: Past, moment: Moment) -> Snapshot:
    return snapshot_of(subject, past, moment)


def _read_pages(
    model: Any,
    at: Any,
    where: Any,
    config: SQLAuditConfig,
    give: Callable[[Subject, Past, Moment], Result],
    *,
    skip_unknown: bool,
) -> _bridge.ReadPart[Result]:
    if not isinstance(where, Mapping):
        raise RetrievalError(f"where is a {type(where).__name__}; expected a mapping of fields to values.")
    check_model(model)
    checked = checked_at(at, config.zone)

    def read(session: Session, mark: tuple[Moment, str] | None) -> tuple[list[Result], tuple[Moment, str] | None]:
        if session.autoflush:
            session.flush()
        subject = subject_of(model, session, config)
        matches = matcher(subject, where)
        moment, after = (first_moment(checked, session, subject), None) if mark is None else mark
        page = read_page(session, subject, moment, after, SNAPSHOTS_PER_PAGE, skip_unknown=skip_unknown)
        found = [give(subject, past, moment) for past in page.pasts if matches(past)]
        return found, None if page.last is None else (moment, page.last)

    return read


# --- instances -------------------------------------------------------------------------------------------------------


@overload
def load_as_of(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: Session,
    at: At,
    config: SQLAuditConfig | None = None,
) -> Model | None: ...
@overload
def load_as_of(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: AsyncSession | None = None,
    at: At,
    config: SQLAuditConfig | None = None,
) -> Awaitable[Model | None]: ...
def load_as_of(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: AsyncSession | Session | None = None,
    at: At,
    config: SQLAuditConfig | None = None,
) -> Model | Awaitable[Model | None] | None:
    """
    Return a row as it was, as an instance of its model: for templates and serializers that know the model.

    It is transient and read-only: it belongs to no session, and adding it to
    one, setting or deleting a mapped attribute, or flagging it as modified
    raises a `ReadOnlyError`. Nothing is loaded through it: reading a relationship,
    or a column that the trail doesn't know as of then, raises a
    `NotRecordedError`, which is an `AttributeError`, too. Withheld values are
    `MASKED`. ``__init__`` isn't called. None is returned when there was no row.

    Args:
        model: a tracked model.
        resource_id: the key, as for `get_resource_snapshot`.
        session: what to read with, as for `get_resource_snapshot`.
        at: the moment, as for `get_resource_snapshot`.
        config: instead of the default configuration.

    Raises:
        UnknownStateError: the trail doesn't tell what the row was then.
        UntrackedError: the model isn't tracked.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    return _bridge.run(_load_as_of(model, resource_id, at, config), session, config.session_factory)


def load_as_of_sync(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: Session | None = None,
    at: At,
    config: SQLAuditConfig | None = None,
) -> Model | None:
    """
    Return a row as it was, as an instance of its model: `load_as_of` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    return _bridge.run_sync(_load_as_of(model, resource_id, at, config), session, config.session_factory)


def _load_as_of(
    model: type[Model], resource_id: Any, at: Any, config: SQLAuditConfig
) -> Callable[[Session], Model | None]:
    _check_mapped(model)

    def read(session: Session, subject: Subject, moment: Moment) -> Model | None:
        instance: Model | None = as_instance(read_past(session, subject, resource_id, moment))
        return instance

    return _at_moment(model, at, config, read)


@overload
def load_all_as_of(
    model: type[Model],
    *,
    session: Session,
    at: At,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Model]: ...
@overload
def load_all_as_of(
    model: type[Model],
    *,
    session: AsyncSession | None = None,
    at: At,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> AsyncIterator[Model]: ...
def load_all_as_of(
    model: type[Model],
    *,
    session: AsyncSession | Session | None = None,
    at: At,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Model] | AsyncIterator[Model]:
    """
    Iterate over the rows of a model as they were, as `load_as_of` gives one of them, and as `get_snapshots` finds them.

    Raises:
        UnknownStateError: while iterating: the trail doesn't tell what a row was then.
        UntrackedError: the model isn't tracked.
        UnknownFieldError: while iterating: *where* names a field that the model doesn't have.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    return _bridge.stream(
        _load_pages(model, at, where, config, skip_unknown=skip_unknown), session, config.session_factory
    )


def load_all_as_of_sync(
    model: type[Model],
    *,
    session: Session | None = None,
    at: At,
    where: Mapping[str, Any] = _NO_VALUES,
    skip_unknown: bool = False,
    config: SQLAuditConfig | None = None,
) -> Iterator[Model]:
    """
    Iterate over the rows of a model as they were: `load_all_as_of` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    pages = _load_pages(model, at, where, config, skip_unknown=skip_unknown)
    return _bridge.stream_sync(pages, session, config.session_factory)


def _load_pages(
    model: type[Model], at: Any, where: Any, config: SQLAuditConfig, *, skip_unknown: bool
) -> _bridge.ReadPart[Model]:
    _check_mapped(model)

    def give(_: Subject, past: Past, __: Moment) -> Model:
        instance: Model = as_instance(past)
        return instance

    return _read_pages(model, at, where, config, give, skip_unknown=skip_unknown)


# --- differences -----------------------------------------------------------------------------------------------------


@overload
def diff_resource(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    start: At,
    end: At = None,
    *,
    session: Session,
    config: SQLAuditConfig | None = None,
) -> dict[str, FieldDiff]: ...
@overload
def diff_resource(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    start: At,
    end: At = None,
    *,
    session: AsyncSession | None = None,
    config: SQLAuditConfig | None = None,
) -> Awaitable[dict[str, FieldDiff]]: ...
def diff_resource(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    start: At,
    end: At = None,
    *,
    session: AsyncSession | Session | None = None,
    config: SQLAuditConfig | None = None,
) -> dict[str, FieldDiff] | Awaitable[dict[str, FieldDiff]]:
    """
    Return in which fields a row differs between two moments, and how.

    Of a moment at which there was no row, all values are `MISSING`. Values are
    compared as the database would: masked ones, which nobody knows, never differ.
    *start* may be the later one: the diff leads from there to *end*.

    Args:
        model: a tracked model, or a tracked Core table.
        resource_id: the key, as for `get_resource_snapshot`.
        start: the moment of the old values, as for `get_resource_snapshot`.
        end: the moment of the new values; None for now.
        session: what to read with, as for `get_resource_snapshot`.
        config: instead of the default configuration.

    Raises:
        UnknownStateError: the trail doesn't tell what the row was at one of the moments.
        UntrackedError: the model isn't tracked.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    return _bridge.run(_diff(model, resource_id, start, end, config), session, config.session_factory)


def diff_resource_sync(
    model: type[Any] | Table,
    resource_id: ResourceIdType,
    start: At,
    end: At = None,
    *,
    session: Session | None = None,
    config: SQLAuditConfig | None = None,
) -> dict[str, FieldDiff]:
    """
    Return in which fields a row differs between two moments: `diff_resource` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    return _bridge.run_sync(_diff(model, resource_id, start, end, config), session, config.session_factory)


def _diff(
    model: Any, resource_id: Any, start: Any, end: Any, config: SQLAuditConfig
) -> Callable[[Session], dict[str, FieldDiff]]:
    end = checked_at(end, config.zone, "end")

    def read(session: Session, subject: Subject, moment: Moment) -> dict[str, FieldDiff]:
        old = read_past(session, subject, resource_id, moment)
        new = read_past(session, subject, resource_id, moment_of(end, session, subject))
        return diff_of(old, new)

    return _at_moment(model, start, config, read, "start")


def diff_of(old: Past, new: Past) -> dict[str, FieldDiff]:
    """Return in which tracked attributes two states of an object differ."""
    before, after = old.state or {}, new.state or {}
    found: dict[str, FieldDiff] = {}
    for name in dict.fromkeys((*before, *after)):
        if (
            name in before
            and name in after
            and old.fields
            and new.fields
            and not differ(old.fields[name], new.fields[name])
        ):
            continue
        found[name] = FieldDiff(before.get(name, MISSING), after.get(name, MISSING))
    return found


# --- writing the past back -------------------------------------------------------------------------------------------


@overload
def restore_resource(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: Session,
    at: At,
    fields: Collection[str] | None = None,
    values: Mapping[str, Any] = _NO_VALUES,
    delete: bool = False,
    config: SQLAuditConfig | None = None,
) -> Model | None: ...
@overload
def restore_resource(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: AsyncSession,
    at: At,
    fields: Collection[str] | None = None,
    values: Mapping[str, Any] = _NO_VALUES,
    delete: bool = False,
    config: SQLAuditConfig | None = None,
) -> Awaitable[Model | None]: ...
def restore_resource(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: AsyncSession | Session,
    at: At,
    fields: Collection[str] | None = None,
    values: Mapping[str, Any] = _NO_VALUES,
    delete: bool = False,
    config: SQLAuditConfig | None = None,
) -> Model | Awaitable[Model | None] | None:
    """
    Write back what a row was, through the ORM: validators, relationships and the audit see it. It isn't committed.

    The row's object is loaded and what differs is set; a row that was deleted
    since is made anew under its old key; both are flushed. What the trail
    doesn't hold, masked and untracked fields, stays as it is, and so do
    computed columns, version counters, and what relationships lead to. If the
    audit context gives no reason, one is given that says what was restored.

    Args:
        model: a tracked model.
        resource_id: the key, as for `get_resource_snapshot`.
        session: what to write with; it is flushed, not committed.
        at: the moment, as for `get_resource_snapshot`.
        fields: attributes to write back; None for all that are tracked.
        values: attributes of a row that has to be made anew: those that the
            trail doesn't hold, or that shall be others. Not used if the row exists.
        delete: delete the row, if there was none then; otherwise that is an error.
        config: instead of the default configuration.

    Returns:
        The object, attached to *session*; None if there was no row, and now there is none.

    Raises:
        UnknownStateError: the trail doesn't tell what the row was then.
        RestoreError: there was no row then; or it has to be made anew, and required values are missing, or
            *fields* are given; or it is of another class now; or a value is none of the column's type any more.
        UntrackedError: the model isn't tracked.
        UnknownFieldError: the model has no such field.
        RetrievalError: another argument makes no sense.
    """
    config = config or get_config()
    operation = _restore(model, resource_id, at, fields, values, config, delete=delete)
    return _bridge.run(operation, session, None)


def restore_resource_sync(
    model: type[Model],
    resource_id: ResourceIdType,
    *,
    session: Session,
    at: At,
    fields: Collection[str] | None = None,
    values: Mapping[str, Any] = _NO_VALUES,
    delete: bool = False,
    config: SQLAuditConfig | None = None,
) -> Model | None:
    """
    Write back what a row was: `restore_resource` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`.
    """
    config = config or get_config()
    operation = _restore(model, resource_id, at, fields, values, config, delete=delete)
    return _bridge.run_sync(operation, session, None)


def _restore(
    model: type[Model],
    resource_id: Any,
    at: Any,
    fields: Any,
    values: Mapping[str, Any],
    config: SQLAuditConfig,
    *,
    delete: bool,
) -> Callable[[Session], Model | None]:
    _check_mapped(model)
    names = None if fields is None else _checked_names("fields", fields)

    def write(session: Session, subject: Subject, moment: Moment) -> Model | None:
        # Otherwise what is pending would be written over what is restored.
        session.flush()
        if names is not None:
            check_names(subject, "fields", names)
        restored: Model | None = restore(session, subject, resource_id, moment, names, values, delete=delete)
        return restored

    return _at_moment(model, at, config, write)


@overload
def undo_transaction(
    transaction_id: uuid.UUID,
    *,
    session: Session,
    force: bool = False,
    metadata: MetaData | None = None,
    config: SQLAuditConfig | None = None,
) -> list[int]: ...
@overload
def undo_transaction(
    transaction_id: uuid.UUID,
    *,
    session: AsyncSession,
    force: bool = False,
    metadata: MetaData | None = None,
    config: SQLAuditConfig | None = None,
) -> Awaitable[list[int]]: ...
def undo_transaction(
    transaction_id: uuid.UUID,
    *,
    session: AsyncSession | Session,
    force: bool = False,
    metadata: MetaData | None = None,
    config: SQLAuditConfig | None = None,
) -> list[int] | Awaitable[list[int]]:
    """
    Undo the changes of one transaction, newest first. It isn't committed.

    Rows of mapped classes are written through the ORM, those of other tracked
    tables, secondary ones for example, by statements; the audit sees both. If
    the audit context gives no reason, one is given that says what was undone.

    Args:
        transaction_id: of the transaction, as changes tell it.
        session: what to write with; it is flushed, not committed.
        force: undo also what others have changed since, over their changes. What
            the trail withholds, masked values, stays as it is.
        metadata: whose tables the changes are of; needed only where tables of
            several `MetaData` have the same label.
        config: instead of the default configuration.

    Returns:
        The ids of the changes that were undone, newest first.

    Raises:
        UndoConflictError: others have changed the same rows and fields since, or values are masked;
            nothing was written.
        RestoreError: the changes are of a table that isn't tracked any more, or a row can't be made anew.
        RetrievalError: the trail has no such transaction, or another argument makes no sense.
    """
    config = config or get_config()
    return _bridge.run(_undo(transaction_id, metadata, config, force=force), session, None)


def undo_transaction_sync(
    transaction_id: uuid.UUID,
    *,
    session: Session,
    force: bool = False,
    metadata: MetaData | None = None,
    config: SQLAuditConfig | None = None,
) -> list[int]:
    """
    Undo the changes of one transaction: `undo_transaction` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`.
    """
    config = config or get_config()
    return _bridge.run_sync(_undo(transaction_id, metadata, config, force=force), session, None)


def _undo(
    transaction_id: Any, metadata: MetaData | None, config: SQLAuditConfig, *, force: bool
) -> Callable[[Session], list[int]]:
    if not isinstance(transaction_id, uuid.UUID):
        raise RetrievalError(f"transaction_id is a {type(transaction_id).__name__}; expected a UUID.")

    def write(session: Session) -> list[int]:
        session.flush()
        return undo(session, transaction_id, config, metadata, force=force)

    return write


# --- arguments -------------------------------------------------------------------------------------------------------


def _at_moment(
    model: Any,
    at: Any,
    config: SQLAuditConfig,
    work: Callable[[Session, Subject, Moment], Result],
    argument: str = "at",
) -> Callable[[Session], Result]:
    """Check the arguments, before any session is opened, and return what is to be done with one."""
    check_model(model)
    checked = checked_at(at, config.zone, argument)

    def operation(session: Session) -> Result:
        if session.autoflush:
            session.flush()
        subject = subject_of(model, session, config)
        return work(session, subject, moment_of(checked, session, subject))

    return operation


def _check_mapped(model: Any) -> None:
    if isinstance(model, Table):
        raise RetrievalError(f"{model.fullname} is a Core table, which has no objects; give a mapped class.")


def _checked_names(argument: str, names: Any) -> set[str]:
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Collection) or not all(isinstance(name, str) for name in listed):
        raise RetrievalError(f"{argument} is {names!r}; expected a list of names.")
    return set(listed)
