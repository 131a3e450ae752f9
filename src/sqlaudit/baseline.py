"""Recording the rows that there were before auditing began."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, overload

from sqlalchemy import Column, Connection, Select, Table, case, func, inspect, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlaudit import _bridge
from sqlaudit._arguments import whole_number_in
from sqlaudit._sources import Source, sources_of
from sqlaudit.capture.connections import refuse_autocommit
from sqlaudit.capture.rows import (
    ROWS_PER_SELECT,
    AuditedTable,
    Image,
    audited_table,
    batched,
    read_images,
)
from sqlaudit.config import SQLAuditConfig, get_config
from sqlaudit.exceptions import CaptureError, RetrievalError
from sqlaudit.recorder import record
from sqlaudit.types import Model, Operation

__all__ = ["create_baseline", "create_baseline_sync"]

BATCH_SIZE: Final = 1000

Key = tuple[Any, ...]
"""The primary key of a row."""
Progress = Callable[[int], object]
"""Is called after each commit with the number of rows recorded so far."""


@overload
def create_baseline(
    model: Model,
    *,
    session: Session,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    config: SQLAuditConfig | None = None,
) -> int: ...
@overload
def create_baseline(
    model: Model,
    *,
    session: AsyncSession | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    config: SQLAuditConfig | None = None,
) -> Awaitable[int]: ...
def create_baseline(
    model: Model,
    *,
    session: AsyncSession | Session | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    config: SQLAuditConfig | None = None,
) -> int | Awaitable[int]:
    """
    Record the rows of a model that the trail knows nothing of as they are now, each as a `baseline` change.

    Await it with an `AsyncSession`, or without a session when the configured
    factory makes those.

    A row gets one unless the trail has its insert or a baseline of it, since it was
    last deleted. So it may be run again, after it was interrupted or to be sure, and
    at any time: it locks the rows of a batch while it records them, as an UPDATE
    would, and what the application does to them comes before or after it.

    A row that was updated under audit before it got its baseline has that update in
    the trail first, and then the baseline: its state at this moment, which replay
    begins with.

    On SQLite, which locks no rows, a batch holds the lock of the one writer.

    Args:
        model: a tracked model: all rows in its tables, those of its subclasses, and
            of the secondary tables of relationships that are tracked; or a tracked Core table.
        session: what to write with. It commits, batch by batch, so it must not be in
            a transaction. None opens a session of the configured factory, and closes it.
        batch_size: how many rows are recorded in a transaction.
        progress: is called after each commit with the number of rows recorded so far.
        config: instead of the default configuration. Who and why is asked for as for any change.

    Returns:
        How many rows were recorded.

    Raises:
        UntrackedError: the model isn't tracked.
        ActorRequiredError: nobody is known to do it, and the configuration requires somebody.
        CaptureError: the session is in a transaction, or a row can't be recorded.
        RetrievalError: another argument makes no sense.
        ConfigurationError: there is no configuration, or its factory gives no session.
    """
    config = config or get_config()
    return _bridge.run(_operation(model, batch_size, progress, config), session, config.session_factory)


def create_baseline_sync(
    model: Model,
    *,
    session: Session | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    config: SQLAuditConfig | None = None,
) -> int:
    """
    Record the rows that the trail knows nothing of: `create_baseline` for a `Session`, without an event loop.

    Raises:
        RetrievalError: also if *session* is an `AsyncSession`, or the configured factory makes those.
    """
    config = config or get_config()
    return _bridge.run_sync(_operation(model, batch_size, progress, config), session, config.session_factory)


def _operation(
    model: Any, batch_size: Any, progress: Progress | None, config: SQLAuditConfig
) -> Callable[[Session], int]:
    """Check the arguments, before any session is opened, and return what is to be done with one."""
    if progress is not None and not callable(progress):
        raise RetrievalError(f"progress is a {type(progress).__name__}; expected a function of a number.")
    size = whole_number_in("batch_size", batch_size, least=1) or BATCH_SIZE
    sources = sources_of(model)
    links = [source for each in sources for link in each.tracking.links for source in sources_of(link.table)]
    tables = {source.table: source for source in (*sources, *links)}
    bind_arguments: dict[str, Any] = {"clause": model} if isinstance(model, Table) else {"mapper": inspect(model)}

    def operation(session: Session) -> int:
        if session.in_transaction():
            raise CaptureError(
                "The session is in a transaction, and a baseline commits its batches; commit or roll back first, or "
                "leave session= out."
            )
        written = 0
        for source in tables.values():
            for count in _write_table(session, source, size, bind_arguments, config):
                written += count
                if progress is not None:
                    progress(written)
        return written

    return operation


def _write_table(
    session: Session, source: Source, size: int, bind_arguments: dict[str, Any], config: SQLAuditConfig
) -> Iterator[int]:
    """Yield how many rows of a table were recorded, after each commit."""
    last: Key | None = None
    while True:
        # Which rows there are, and lack one, is asked without a lock, and in a transaction of its own: the one that
        # locks must not see them as they were before it had the lock.
        with session.begin():
            connection = _connection(session, bind_arguments)
            audited = audited_table(source.table, source.tracking, connection.dialect)
            if last is None:
                _refuse_null_keys(connection, audited)
            rows = _next_rows(connection, audited, last, size)
            begun = _begun(connection, audited, [*rows.values()], config.trail)
        lacking = [key for key, resource_id in rows.items() if resource_id not in begun]
        if lacking:
            with session.begin():
                connection = _connection(session, bind_arguments)
                _lock_writers(connection, config.trail)
                count = _write_batch(session, connection, audited, lacking, config)
            if count:
                yield count
        if len(rows) < size:
            return
        last = [*rows][-1]


def _connection(session: Session, bind_arguments: dict[str, Any]) -> Connection:
    """
    Return the connection of a transaction that begins.

    READ COMMITTED: having waited for the lock of a row, it shall see what the one
    that held it has written.
    """
    options: dict[str, Any] = {}
    if session.get_bind(**bind_arguments).dialect.name != "sqlite":
        options["isolation_level"] = "READ COMMITTED"
    connection = session.connection(bind_arguments=bind_arguments, execution_options=options)
    refuse_autocommit(connection)
    return connection


def _lock_writers(connection: Connection, trail: Table) -> None:
    """Keep others from writing, where rows can't be locked: a write of nothing does that, however SQLite has begun."""
    if connection.dialect.name == "sqlite":
        names = [column.name for column in trail.columns]
        connection.execute(trail.insert().from_select(names, select(trail).where(trail.c.id < 0)))


def _refuse_null_keys(connection: Connection, audited: AuditedTable) -> None:
    columns = _key_columns(audited)
    is_null = or_(*(column.is_(None) for column in columns))
    if connection.dialect.name == "sqlite" and connection.execute(select(*columns).where(is_null).limit(1)).first():
        raise CaptureError(
            f"A row of {audited.tracking.label} has NULL in its primary key, which SQLite alone lets it; give it a key."
        )


def _next_rows(connection: Connection, audited: AuditedTable, last: Key | None, size: int) -> dict[Key, str]:
    """Return the resource ids of the rows that follow *last*, by primary key, in its order."""
    own = _key_columns(audited)
    named_by = audited.tracking.resource_key
    readable = [audited.codecs[key].readable(audited.table.columns[key]) for key in named_by]
    query: Select[Any] = select(*own, *readable).order_by(*own).limit(size)
    if last is not None:
        query = query.where(own[0] > last[0] if len(own) == 1 else tuple_(*own) > last)
    rows: dict[Key, str] = {}
    for row in connection.execute(query):
        parts = zip(named_by, row[len(own) :], strict=True)
        image: Image = {key: audited.codecs[key].as_read.dump(value) for key, value in parts}
        rows[tuple(row[: len(own)])] = audited.resource_id(image)
    return rows


def _key_columns(audited: AuditedTable) -> list[Column[Any]]:
    return [audited.table.columns[key] for key in audited.primary_key]


def _write_batch(
    session: Session,
    connection: Connection,
    audited: AuditedTable,
    keys: Sequence[Key],
    config: SQLAuditConfig,
) -> int:
    """Lock rows, and record those that still are there and lack a beginning."""
    found = read_images(connection, audited, None, keys)
    images = [found[row_key] for row_key in map(audited.row_key, keys) if row_key in found]
    begun = _begun(connection, audited, [audited.resource_id(image) for image in images], config.trail)
    changes = [
        change
        for image in images
        if audited.resource_id(image) not in begun
        for change in audited.changes(Operation.BASELINE, {}, image)
    ]
    record(session, connection, [changes], config)
    return len(changes)


def _begun(connection: Connection, audited: AuditedTable, ids: Sequence[str], trail: Table) -> set[str]:
    """Return those of the resources *ids* that have an insert or baseline in the trail, and no delete after it."""
    columns = trail.c
    begins = columns.operation.in_([Operation.INSERT.value, Operation.BASELINE.value])
    ends = columns.operation == Operation.DELETE.value
    begun: set[str] = set()
    for chunk in batched(ids, ROWS_PER_SELECT):
        query = (
            select(
                columns.resource_id,
                func.max(case((begins, columns.id), else_=0)),
                func.max(case((ends, columns.id), else_=0)),
            )
            .where(columns.resource_type.in_(audited.tracking.labels), columns.resource_id.in_(chunk))
            .group_by(columns.resource_id)
        )
        begun.update(resource_id for resource_id, began, ended in connection.execute(query) if began > ended)
    return begun
