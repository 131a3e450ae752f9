"""Saying in tests what the trail shall tell: with pytest, unittest, or neither."""

import difflib
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from inspect import isawaitable, iscoroutine
from types import EllipsisType
from typing import Any, overload

from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import InstanceState, Session

from sqlaudit import _bridge
from sqlaudit._changes import changes_in, scopes_of, select_page, select_wanted
from sqlaudit._delivery import Written, options_of, user_codec_of
from sqlaudit._filters import Page, checked_filter
from sqlaudit._sources import Source, sources_of
from sqlaudit.capture.committing import add_listener, remove_listener
from sqlaudit.exceptions import RetrievalError, UnknownFieldError
from sqlaudit.recorder import transaction_of
from sqlaudit.types import Change, OldNew, Operation, UserIdType

__all__ = ["Recording", "assert_changed", "assert_unchanged", "recorded_changes"]

# --- recording -------------------------------------------------------------------------------------------------------


class Recording:
    """
    The changes that a session records from now on, as they stand in the trail.

    They are read on the session's own connection while it has one: committed or
    not, but nothing of what was rolled back.
    """

    def __init__(self, session: AsyncSession | Session) -> None:
        self._given = session
        self._session = _bridge.synchronous(session)
        self._written: dict[tuple[Any, ...], tuple[Connection, Written, int]] = {}
        self._ongoing = transaction_of(self._session).id if self._session.in_transaction() else None
        add_listener(self._session, self._note)

    def close(self) -> None:
        """Take no notice of the transactions that follow. Doing it twice is doing it once."""
        remove_listener(self._session, self._note)

    async def changes(self) -> list[Change]:
        """Return the changes so far, oldest first; pending objects are flushed, if the session autoflushes."""
        found = _bridge.run(self._read, self._given, None)
        return await found if isinstance(found, Awaitable) else found

    def changes_sync(self) -> list[Change]:
        """
        Return the changes so far, without an event loop.

        Raises:
            RetrievalError: the session is an `AsyncSession`.
        """
        return _bridge.run_sync(self._read, self._given, None)  # type: ignore[arg-type]  # it refuses what it can't

    def _note(self, connection: Connection, written: Written) -> None:
        """Runs before something is written to the trail."""
        key = (connection, written.transaction_id, written.config.trail, repr(written.places))
        if key in self._written:
            return
        after = 0
        if written.transaction_id == self._ongoing:
            # The transaction is older than the recording.
            trail = written.config.trail
            last = select(func.max(trail.c.id)).where(trail.c.transaction_id == written.transaction_id)
            after = connection.execute(last, execution_options=options_of(written)).scalar() or 0
        self._written[key] = connection, written, after

    def _read(self, session: Session) -> list[Change]:
        flush_pending(session)
        return [
            change
            for connection, written, after in self._written.values()
            for change in _changes_on(session, connection, written, after)
        ]


def flush_pending(session: Session) -> None:
    """Flush as a query would; a session whose transaction has failed can't."""
    if session.autoflush and session.is_active:
        session.flush()


def _changes_on(session: Session, connection: Connection, written: Written, after: int) -> list[Change]:
    """Return the changes of a transaction, those after a change id, read where they can be seen."""
    if not connection.closed:
        had_begun = connection.in_transaction()
        try:
            return _changes_of(connection, written, after)
        finally:
            if not had_begun:
                connection.rollback()
    if session.in_transaction() and session.is_active:
        return _changes_of(session.connection(bind_arguments={"bind": written.engine}), written, after)
    with written.engine.connect() as another:
        return _changes_of(another, written, after)


def _changes_of(connection: Connection, written: Written, after: int) -> list[Change]:
    config = written.config
    wanted = checked_filter(None, config.zone, transaction_id=written.transaction_id, id_range=(after + 1, None))
    scopes = scopes_of(wanted, connection.dialect, config.trail)
    query = select_page(select_wanted(wanted, scopes, config.trail), config.trail, Page(newest_first=False))
    rows = connection.execute(query, execution_options=options_of(written)).all()
    return list(changes_in(rows, scopes, user_codec_of(config, connection.dialect), config.zone))


@overload
def recorded_changes(
    session: AsyncSession | async_scoped_session[Any],
) -> AbstractAsyncContextManager[list[Change]]: ...
@overload
def recorded_changes(session: Session) -> AbstractContextManager[list[Change]]: ...
def recorded_changes(session: Any) -> AbstractAsyncContextManager[list[Change]] | AbstractContextManager[list[Change]]:
    """
    Collect the changes that a session records within a block: committed ones or not.

        async with recorded_changes(session) as changes:
            customer.name = "Joan"
            await session.commit()
        assert_changed(changes, customer, name=("Jane", "Joan"))

    The list is filled at the end of the block, oldest first, from the trail. What was pending
    before is flushed before, what is pending at the end as well, if the session
    autoflushes. A block that raises leaves the list empty.

    Args:
        session: an `AsyncSession` (``async with``) or a `Session` (``with``), hooked, however it
            ends its transactions: it may be bound to a connection whose transaction the test rolls back.

    Raises:
        RetrievalError: *session* is something else.
    """
    if isinstance(session, (AsyncSession, async_scoped_session)):
        return _recorded_async(session() if isinstance(session, async_scoped_session) else session)
    return _recorded(_bridge.checked(session))


@asynccontextmanager
async def _recorded_async(session: AsyncSession) -> AsyncIterator[list[Change]]:
    await session.run_sync(flush_pending)
    changes: list[Change] = []
    recording = Recording(session)
    try:
        yield changes
        changes += await recording.changes()
    finally:
        recording.close()


@contextmanager
def _recorded(session: Session) -> Iterator[list[Change]]:
    flush_pending(session)
    changes: list[Change] = []
    recording = Recording(session)
    try:
        yield changes
        changes += recording.changes_sync()
    finally:
        recording.close()


# --- asserting -------------------------------------------------------------------------------------------------------


def assert_changed(
    changes: Iterable[Change],
    resource: Any,
    /,
    *,
    operation: Operation | str | None = None,
    by: UserIdType | EllipsisType | None = ...,
    reason: str | EllipsisType | None = ...,
    fields: Mapping[str, tuple[Any, Any]] | None = None,
    **more_fields: tuple[Any, Any],
) -> Change:
    """
    Fail unless one of *changes* is of a row, and as expected; return it.

        assert_changed(changes, customer, name=("Jane", "Joan"), by=42)
        assert_changed(changes, (Customer, 7), operation="delete")
        assert_changed(changes, Order, total=(None, ...))

    What isn't named doesn't matter: the change may tell of other fields, too.

    Args:
        changes: of `recorded_changes`, `get_changes` or a subscriber.
        resource: an object; a model with a key, ``(Customer, 7)``; or a model, for any row of it.
        operation: what was done.
        by: who has done it; None for nobody.
        reason: why; None for no reason.
        fields: old and new values, as *more_fields*, for fields that have the name of a parameter.
        more_fields: old and new value by attribute name; ``...`` stands for any value.

    Raises:
        AssertionError: there is no such change; it says what there is instead.
        UnknownFieldError: the model has no such field.
        RetrievalError: *resource* is no row of a tracked model.
        TypeError: what is expected of a field is no pair; *changes* are no changes.
        ValueError: there is no such *operation*.
    """
    __tracebackhide__ = True
    recorded = _checked(changes)
    wanted = _Resource.of(resource)
    pairs = _pairs({**(fields or {}), **more_fields})
    wanted.check_names(pairs)
    if operation is not None and operation not in {*Operation}:
        raise ValueError(f"operation is {operation!r}; expected one of {', '.join(Operation)}.")
    own = [(change, _differences(change, operation, by, reason, pairs)) for change in recorded if wanted.fits(change)]
    for change, differences in own:
        if not differences:
            return change
    raise AssertionError(_failure(wanted, own, recorded))


def assert_unchanged(changes: Iterable[Change], resource: Any, /, *fields: str) -> None:
    """
    Fail if one of *changes* is of a row, or tells of one of *fields* of it.

        assert_unchanged(changes, customer)
        assert_unchanged(changes, (Customer, 7), "name", "email")

    Args:
        changes: as for `assert_changed`.
        resource: as for `assert_changed`.
        fields: attribute names; all, if none is given.

    Raises:
        AssertionError: there is such a change; it says which.
        UnknownFieldError: the model has no such field.
        RetrievalError: *resource* is no row of a tracked model.
    """
    __tracebackhide__ = True
    recorded = _checked(changes)
    wanted = _Resource.of(resource)
    wanted.check_names(fields)
    found = [
        each for each in recorded if wanted.fits(each) and (not fields or not each.fields.keys().isdisjoint(fields))
    ]
    if found:
        of = f"{', '.join(fields)} of {wanted}" if fields else f"{wanted}"
        raise AssertionError("\n".join([f"{of} was to stay as it is, but was changed:", *map(_line, found)]))


def _checked(changes: Any) -> list[Change]:
    """Return *changes*, which nobody has forgotten to await, or to give first."""
    if isawaitable(changes):
        if iscoroutine(changes):
            changes.close()
        raise TypeError("changes are still to be awaited; write assert_changed(await ..., resource).")
    if not isinstance(changes, Iterable):
        raise TypeError(f"changes is a {type(changes).__name__}; expected the changes, and after them the resource.")
    return list(changes)


class _Resource:
    """Which rows are meant."""

    def __init__(self, name: str, sources: Collection[Source], key: Any = ...) -> None:
        self._name = name
        self._labels = {label for source in sources for label in source.tracking.labels}
        self._key = key
        self._fields = {source.names.get(key, key) for source in sources for key in source.tracking.recorded}

    @classmethod
    def of(cls, resource: Any) -> "_Resource":
        """Return what a user's *resource* means."""
        if isinstance(resource, tuple) and len(resource) == 2:
            model, key = resource
            return cls(_name_of(model), sources_of(model), key)
        state = inspect(resource, raiseerr=False)
        if isinstance(state, InstanceState):
            sources = sources_of(type(resource))
            return cls(type(resource).__name__, sources, _key_of(state, sources[0]))
        return cls(_name_of(resource), sources_of(resource))

    def __str__(self) -> str:
        return self._name if self._key is ... else f"{self._name} {self._key!r}"

    def fits(self, change: Change) -> bool:
        """Return whether *change* is of such a row."""
        if change.resource_type not in self._labels:
            return False
        return self._key in (..., change.resource_id) or str(self._key) == str(change.resource_id)

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse names of no field: nothing would ever be recorded of them."""
        if unknown := {*names} - self._fields:
            raise UnknownFieldError(f"the trail of {self._name}", "fields", unknown, self._fields)


def _name_of(model: Any) -> str:
    return str(getattr(model, "__name__", model))


def _key_of(state: InstanceState[Any], source: Source) -> Any:
    """Return the key of an object's row, without loading anything."""
    columns = [source.table.columns[key] for key in source.tracking.resource_key]
    if columns == list(source.table.primary_key) and state.identity is not None:
        key = tuple(state.identity)
    else:
        names = [source.names.get(key, key) for key in source.tracking.resource_key]
        if not all(state.dict.get(name) is not None for name in names):
            raise RetrievalError(
                f"This {state.class_.__name__} has no key that is known: it was never flushed, or its "
                f"{', '.join(names)} isn't loaded; give the model and the key, ({state.class_.__name__}, key)."
            )
        key = tuple(state.dict[name] for name in names)
    return key[0] if len(key) == 1 else key


def _pairs(fields: Mapping[str, Any]) -> dict[str, OldNew]:
    for name, pair in fields.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{name} is {pair!r}; expected a tuple of the old and the new value, ... for any.")
    return {name: OldNew(*pair) for name, pair in fields.items()}


def _differences(
    change: Change,
    operation: Operation | str | None,
    by: UserIdType | EllipsisType | None,
    reason: str | EllipsisType | None,
    pairs: Mapping[str, OldNew],
) -> list[str]:
    """Return what isn't as expected, in words."""
    found = []
    if operation is not None and change.operation != operation:
        found.append(f"the operation was {change.operation}, not {Operation(operation)}")
    if by is not ... and by != change.changed_by and (by is None or str(by) != str(change.changed_by)):
        found.append(f"it was changed {_by(change.changed_by)}, not {_by(by)}")
    if reason is not ... and reason != change.reason:
        found.append(f"the reason was {change.reason!r}, not {reason!r}")
    for name, (old, new) in pairs.items():
        actual = change.fields.get(name)
        if actual is None:
            found.append(f"{name} was not changed; expected {_step(old, new)}")
        elif not (_same(old, actual.old) and _same(new, actual.new)):
            found.append(f"{name} was changed {_step(*actual)}, not {_step(old, new)}")
            found += _text_difference(new, actual.new)
    return found


def _same(expected: Any, actual: Any) -> bool:
    return expected is ... or bool(expected == actual)


def _text_difference(expected: Any, actual: Any) -> list[str]:
    """Return a diff of texts of several lines."""
    if not (isinstance(expected, str) and isinstance(actual, str) and "\n" in expected + actual):
        return []
    return [f"  {line}" for line in difflib.ndiff(expected.splitlines(), actual.splitlines())]


def _failure(wanted: _Resource, own: list[tuple[Change, list[str]]], recorded: list[Change]) -> str:
    if not own:
        if not recorded:
            return (
                f"There is no change of {wanted}: nothing was recorded at all; see that register_hooks() was called "
                f"for the session, and that it was flushed."
            )
        return "\n".join([f"There is no change of {wanted}. Recorded were:", *map(_line, recorded)])
    lines = [f"No change of {wanted} is as expected:"]
    for change, differences in own:
        lines += [_line(change), *(f"    {each}" for each in differences)]
    others = [change for change in recorded if not wanted.fits(change)]
    return "\n".join([*lines, *(["Other changes were:"] if others else []), *map(_line, others)])


def _line(change: Change) -> str:
    fields = ", ".join(f"{name} {_step(*values)}" for name, values in change.fields.items())
    return f"  {change.operation} of {change.resource_type} {change.resource_id!r} {_by(change.changed_by)}: {fields}"


def _step(old: Any, new: Any) -> str:
    before, after = ("anything" if each is ... else repr(each) for each in (old, new))
    return f"from {before} to {after}"


def _by(user_id: Any) -> str:
    return "by nobody" if user_id is None else f"by {user_id}"
