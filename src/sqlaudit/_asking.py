"""The questions that are asked of the trail as a whole: `sqlaudit.retrieval` exports them."""

from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any, Final, Unpack, overload

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlaudit import _bridge
from sqlaudit._arguments import check_choice
from sqlaudit._filters import checked_filter, checked_page
from sqlaudit._questions import Prepared, counting, counting_by, reading, reading_parts
from sqlaudit.config import SQLAuditConfig, get_config
from sqlaudit.types import Change, ChangeFilters, ChangeGroup, Models

BATCH_SIZE: Final = 1000


@overload
def get_changes(
    model: Models = None,
    *,
    session: Session,
    limit: int | None = None,
    after: int | None = None,
    before: int | None = None,
    newest_first: bool = True,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> list[Change]: ...
@overload
def get_changes(
    model: Models = None,
    *,
    session: AsyncSession | None = None,
    limit: int | None = None,
    after: int | None = None,
    before: int | None = None,
    newest_first: bool = True,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Awaitable[list[Change]]: ...
def get_changes(
    model: Models = None,
    *,
    session: AsyncSession | Session | None = None,
    limit: int | None = None,
    after: int | None = None,
    before: int | None = None,
    newest_first: bool = True,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> list[Change] | Awaitable[list[Change]]:
    """
    Return whole changes, of one model, of several or of all, newest first.

    Await it with an `AsyncSession`, or without a session when the configured
    factory makes those. With a `Session`, or a factory of such, it returns the
    list itself; `get_changes_sync` says so in its type.

    Pages: `after=page[-1].change_id` gives the page that follows, and
    `before=page[0].change_id` the one before it, whatever was written in the
    meantime; in the order of the list, so that newest first what comes *after* is
    older. A transaction that was open while a page was read may commit changes
    whose ids belong in it.

    Args:
        model: a tracked model or Core table, or a list of them; None means
            everything in the trail, also of models that are gone. A class stands for
            its subclasses, too, and a joined class for its rows in all of its tables.
        session: what to read with; pending objects are flushed if it
            autoflushes. None opens a session of the configured factory, and closes it.
        limit: at most so many changes.
        after: a change id; the changes that follow it in the list.
        before: a change id; the changes that end right before it in the list.
        newest_first: the order of the list; False is oldest first.
        config: instead of the default configuration.
        filters: which changes; `ChangeFilters` says what each of them means.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: a field or relationship is named that no model has.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    operation = reading(
        checked_filter(model, config.zone, **filters), checked_page(limit, after, before, newest_first), config
    )
    return _bridge.run(operation, session, config.session_factory)


def get_changes_sync(
    model: Models = None,
    *,
    session: Session | None = None,
    limit: int | None = None,
    after: int | None = None,
    before: int | None = None,
    newest_first: bool = True,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> list[Change]:
    """
    Return whole changes: `get_changes` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    operation = reading(
        checked_filter(model, config.zone, **filters), checked_page(limit, after, before, newest_first), config
    )
    return _bridge.run_sync(operation, session, config.session_factory)


@overload
def stream_changes(
    model: Models = None,
    *,
    session: Session,
    limit: int | None = None,
    after: int | None = None,
    newest_first: bool = True,
    batch_size: int = BATCH_SIZE,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Generator[Change, None, None]: ...
@overload
def stream_changes(
    model: Models = None,
    *,
    session: AsyncSession | None = None,
    limit: int | None = None,
    after: int | None = None,
    newest_first: bool = True,
    batch_size: int = BATCH_SIZE,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> AsyncGenerator[Change, None]: ...
def stream_changes(
    model: Models = None,
    *,
    session: AsyncSession | Session | None = None,
    limit: int | None = None,
    after: int | None = None,
    newest_first: bool = True,
    batch_size: int = BATCH_SIZE,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Generator[Change, None, None] | AsyncGenerator[Change, None]:
    """
    Yield whole changes, however many there are, in bounded memory.

    ``async for`` it with an `AsyncSession`, or without a session when the
    configured factory makes those; ``for`` it with a `Session`.

    It reads pages by the change id, each with a statement of its own, and holds no
    cursor: every driver can do that, and the session may be written with, committed
    and rolled back in between. It ends with the newest change of the moment when it
    began, so what its consumer writes doesn't come.

    Args:
        model: as for `get_changes`.
        session: as for `get_changes`. A session that it opened itself is closed
            at the end; to leave earlier, use `contextlib.aclosing` (`closing`).
        limit: at most so many changes.
        after: a change id; the changes that follow it, to go on where one has stopped.
        newest_first: the order; False is oldest first.
        batch_size: how many changes are read at a time, and are in memory.
        config: instead of the default configuration.
        filters: as for `get_changes`.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: a field or relationship is named that no model has.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    read = reading_parts(
        checked_filter(model, config.zone, **filters),
        checked_page(limit, after, None, newest_first),
        batch_size,
        config,
    )
    return _bridge.stream(read, session, config.session_factory)


def stream_changes_sync(
    model: Models = None,
    *,
    session: Session | None = None,
    limit: int | None = None,
    after: int | None = None,
    newest_first: bool = True,
    batch_size: int = BATCH_SIZE,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Generator[Change, None, None]:
    """
    Yield whole changes: `stream_changes` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    read = reading_parts(
        checked_filter(model, config.zone, **filters),
        checked_page(limit, after, None, newest_first),
        batch_size,
        config,
    )
    return _bridge.stream_sync(read, session, config.session_factory)


@overload
def count_changes(
    model: Models = None,
    *,
    session: Session,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> int: ...
@overload
def count_changes(
    model: Models = None,
    *,
    session: AsyncSession | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Awaitable[int]: ...
def count_changes(
    model: Models = None,
    *,
    session: AsyncSession | Session | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> int | Awaitable[int]:
    """
    Return how many changes there are.

    Args:
        model: as for `get_changes`.
        session: as for `get_changes`.
        config: instead of the default configuration.
        filters: as for `get_changes`.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: a field or relationship is named that no model has.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    operation = counting(checked_filter(model, config.zone, **filters), config)
    return _bridge.run(operation, session, config.session_factory)


def count_changes_sync(
    model: Models = None,
    *,
    session: Session | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> int:
    """
    Return how many changes there are: `count_changes` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    operation = counting(checked_filter(model, config.zone, **filters), config)
    return _bridge.run_sync(operation, session, config.session_factory)


@overload
def count_changes_by(
    group: ChangeGroup,
    model: Models = None,
    *,
    session: Session,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> dict[Any, int]: ...
@overload
def count_changes_by(
    group: ChangeGroup,
    model: Models = None,
    *,
    session: AsyncSession | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Awaitable[dict[Any, int]]: ...
def count_changes_by(
    group: ChangeGroup,
    model: Models = None,
    *,
    session: AsyncSession | Session | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> dict[Any, int] | Awaitable[dict[Any, int]]:
    """
    Return how many changes there are in each group, for a chart; groups without any aren't there.

    Args:
        group: "day": by `datetime.date`, in the configured zone, in order; "actor": by
            `Change.changed_by`, None for the unknown; "model": by label; "operation":
            by `Operation`.
        model: as for `get_changes`.
        session: as for `get_changes`.
        config: instead of the default configuration.
        filters: as for `get_changes`.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: a field or relationship is named that no model has.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    check_choice("group", group, ChangeGroup)
    config = config or get_config()
    operation = counting_by(group, checked_filter(model, config.zone, **filters), config)
    return _bridge.run(operation, session, config.session_factory)


def count_changes_by_sync(
    group: ChangeGroup,
    model: Models = None,
    *,
    session: Session | None = None,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> dict[Any, int]:
    """
    Return how many changes there are in each group: `count_changes_by` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    check_choice("group", group, ChangeGroup)
    config = config or get_config()
    operation = counting_by(group, checked_filter(model, config.zone, **filters), config)
    return _bridge.run_sync(operation, session, config.session_factory)


def select_changes(
    model: Models = None,
    *,
    session: AsyncSession | Session,
    config: SQLAuditConfig | None = None,
    **filters: Unpack[ChangeFilters],
) -> Select[Any]:
    """
    Return the query for the rows of the trail, to be composed further: SQLAlchemy's `Select`, in no order.

    Nothing is sent. Its columns are those of the trail's table, `config.trail`;
    the values in its rows are as they are stored.

    Args:
        model: as for `get_changes`.
        session: with which the query will be executed: values are written as its database writes them.
        config: instead of the default configuration.
        filters: as for `get_changes`.

    Raises:
        UntrackedError: a model isn't tracked.
        UnknownFieldError: a field or relationship is named that no model has.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration.
    """
    config = config or get_config()
    wanted = checked_filter(model, config.zone, **filters)
    return Prepared.of(_bridge.synchronous(session), wanted, config).select
