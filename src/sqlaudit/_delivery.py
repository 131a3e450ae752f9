"""How committed changes reach their subscribers: read when their transaction is over, and told in its order."""

import asyncio
import logging
import os
import threading
import traceback
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Dialect, Engine, false, or_, select, true
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from sqlaudit._changes import changes_in, criterion_of, scopes_of
from sqlaudit._filters import checked_filter
from sqlaudit.codec import Codec, codec_of
from sqlaudit.config import SQLAuditConfig, user_id_column
from sqlaudit.exceptions import SQLAuditError
from sqlaudit.types import Change, Model

Callback: TypeAlias = Callable[[Change], Any]

MAX_WAITING: Final = 10_000
"""How many transactions may wait to be told; one that comes when so many do isn't."""

_PAGE_SIZE: Final = 500

_ONE_CONNECTION: Final = (StaticPool, SingletonThreadPool, AssertionPool)
"""Pools without a second connection, to read with while the application goes on with the first."""

_logger: Final = logging.getLogger("sqlaudit.events")


@dataclass(frozen=True, slots=True, eq=False)
class Subscriber:
    """Who wants to hear of committed changes."""

    callback: Callback
    models: tuple[Model, ...] | None
    """Of which models; None for all."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        return getattr(self.callback, "__qualname__", type(self.callback).__qualname__)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A transaction that has written to the trail, or may have let triggers do so."""

    engine: Engine
    transaction_id: uuid.UUID
    config: SQLAuditConfig
    places: Mapping[str | None, str | None] | None
    """The ``schema_translate_map`` under which it wrote."""


_Told: TypeAlias = tuple[Change, list[Subscriber]]
"""A change, and who wants to hear of it."""

_Barrier: TypeAlias = "threading.Event | asyncio.Event"
"""Set when it is its turn: all that came before has been told."""

_Item: TypeAlias = "Written | list[_Told] | _Barrier"
"""What waits: a transaction whose changes are still to be read, changes that were, or somebody until then."""

_subscribers: tuple[Subscriber, ...] = ()


def has_subscribers() -> bool:
    """Return whether anybody wants to hear of changes."""
    return bool(_subscribers)


def add_subscriber(subscriber: Subscriber) -> None:
    """Let *subscriber* hear of what is told from now on."""
    global _subscribers
    _subscribers = (*_subscribers, subscriber)


def remove_subscriber(subscriber: Subscriber) -> None:
    """Let it hear of nothing more. Doing it twice is doing it once."""
    global _subscribers
    _subscribers = tuple(each for each in _subscribers if each is not subscriber)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(connection: Connection, written: Written, after: int = 0, limit: int | None = None) -> list[_Told]:
    """Return the changes of a transaction that somebody wants to hear of, oldest first."""
    config, dialect, trail = written.config, connection.dialect, written.config.trail
    transaction = checked_filter(None, config.zone, transaction_id=written.transaction_id)
    scopes = scopes_of(transaction, dialect, trail)
    wanted = [(who, _criterion(who, connection, config)) for who in _subscribers]
    if not wanted:
        return []
    query = (
        select(trail, *(criterion.label(f"wanted_{place}") for place, (_, criterion) in enumerate(wanted)))
        .where(
            criterion_of(transaction, scopes, trail), trail.c.id > after, or_(*(criterion for _, criterion in wanted))
        )
        .order_by(trail.c.id)
        .limit(limit)
    )
    rows = connection.execute(query, execution_options=options_of(written)).all()
    changes = changes_in(rows, scopes, user_codec_of(config, dialect), config.zone)
    return [
        (change, [who for (who, _), is_wanted in zip(wanted, row[-len(wanted) :], strict=True) if is_wanted])
        for change, row in zip(changes, rows, strict=True)
    ]


def options_of(written: Written) -> dict[str, Any]:
    """Return the execution options that reading the trail of *written* needs."""
    places = {} if written.places is None else {"schema_translate_map": written.places}
    return {"sqlaudit": False, **places}


def user_codec_of(config: SQLAuditConfig, dialect: Dialect) -> Codec | None:
    """Return what reads the ids of users; None for their text."""
    user_column = user_id_column(config)
    return None if user_column is None else codec_of(user_column.type, dialect)


def _criterion(subscriber: Subscriber, connection: Connection, config: SQLAuditConfig) -> ColumnElement[bool]:
    if subscriber.models is None:
        return true()
    wanted = checked_filter(subscriber.models, config.zone)
    try:
        return criterion_of(wanted, scopes_of(wanted, connection.dialect, config.trail), config.trail)
    except SQLAuditError as error:
        # Declarations are complete when the mappers are configured: nobody could have known before.
        _logger.warning("The subscriber %s is told nothing: %s", subscriber.name, error, extra=_named(subscriber))
        return false()


def _fetch(written: Written) -> list[_Told]:
    """Return all changes of a transaction, read here and now."""
    with written.engine.connect() as connection:
        return _read(connection, written)


def _pages(written: Written) -> Iterator[list[_Told]]:
    """Yield the changes of a transaction, page by page; no connection is held in between."""
    after: int | None = 0
    while after is not None:
        with written.engine.connect() as connection:
            told = _read(connection, written, after, _PAGE_SIZE)
        yield told
        after = _last(told)


async def _pages_async(written: Written) -> AsyncIterator[list[_Told]]:
    after: int | None = 0
    while after is not None:
        async with AsyncEngine(written.engine).connect() as connection:
            told = await connection.run_sync(_read, written, after, _PAGE_SIZE)
        yield told
        after = _last(told)


def _last(told: list[_Told]) -> int | None:
    """Return the id after which the next page begins; None if there is none."""
    return told[-1][0].change_id if len(told) == _PAGE_SIZE else None


# --- telling ---------------------------------------------------------------------------------------------------------


def deliver(written: Written) -> None:
    """Let the changes of a transaction that is over be told to whoever wants to hear of them; never raises."""
    try:
        line = _line_of(written.engine)
        if isinstance(written.engine.pool, _ONE_CONNECTION):
            line.put(written, _fetch(written))
        else:
            line.put(written, written)
    except Exception as error:  # noqa: BLE001 (the transaction is over: nothing of this is the application's concern)
        _log_loss(written.transaction_id, _FAILED, error)


def _line_of(engine: Engine) -> "_LoopLine | _ThreadLine":
    """Return where what is written now waits: for the running loop, if the sessions of *engine* are asynchronous."""
    return line_of_loop() if engine.dialect.is_async else line_of_thread


def line_of_loop() -> "_LoopLine":
    """
    Return the line of the running event loop.

    Raises:
        RuntimeError: there is none.
    """
    return _lines.setdefault(asyncio.get_running_loop(), _LoopLine())


class _LoopLine:
    """What waits to be told on an event loop, by a task that is there as long as something waits."""

    def __init__(self) -> None:
        self._waiting: deque[_Item] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, written: Written, item: "Written | list[_Told]") -> None:
        """Let *item*, what *written* is or has, wait for its turn."""
        if len(self._waiting) >= MAX_WAITING:
            _log_loss(written.transaction_id, f"{MAX_WAITING} others wait")
            return
        self._waiting.append(item)
        self._start()

    def barrier(self) -> asyncio.Event:
        """
        Return what is set when all that was put so far is told.

        Raises:
            RuntimeError: a subscriber asks, which would wait for itself.
        """
        if self._task is not None and asyncio.current_task() is self._task:
            raise RuntimeError(_WAITS_FOR_ITSELF)
        barrier = asyncio.Event()
        self._waiting.append(barrier)
        self._start()
        return barrier

    def _start(self) -> None:
        if self._task is None:
            # In no context of anybody's: a subscriber acts for itself. Not with the loop's factory of tasks: an eager
            # one would run it here, within whoever commits.
            loop = asyncio.get_running_loop()
            self._task = asyncio.Task(self._run(), loop=loop, name="sqlaudit", context=Context())

    async def _run(self) -> None:
        try:
            while self._waiting:
                item = self._waiting.popleft()
                try:
                    await self._take(item)
                except BaseException:
                    # The task is cancelled, or the program is to end.
                    self._waiting.appendleft(item)
                    raise
        finally:
            self._task = None
            self._give_up()

    async def _take(self, item: _Item) -> None:
        if isinstance(item, asyncio.Event):
            item.set()
        elif isinstance(item, Written):
            await self._tell_written(item)
        elif isinstance(item, list):
            await self._tell(item)

    def _give_up(self) -> None:
        """Let nobody wait for what won't be told."""
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, asyncio.Event):
                item.set()
            elif isinstance(item, Written):
                _log_loss(item.transaction_id, _ENDED)
            elif isinstance(item, list) and item:
                _log_loss(item[0][0].transaction_id, _ENDED)

    async def _tell_written(self, written: Written) -> None:
        try:
            async for told in _pages_async(written):
                _log_telling(written, told)
                await self._tell(told)
        except Exception as error:  # noqa: BLE001
            _log_loss(written.transaction_id, _FAILED, error)

    async def _tell(self, told: list[_Told]) -> None:
        for subscriber, change in _calls(told):
            with _logging_failures(subscriber, change, _is_its_own):
                result = subscriber.callback(change)
                if isawaitable(result):
                    await result


def _is_its_own(error: BaseException) -> bool:
    """Return whether an error is the subscriber's: not if the task is cancelled that calls it, or the program ends."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception)


_lines: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopLine]] = WeakKeyDictionary()


class _ThreadLine:
    """What synchronous sessions have written, told by a thread that is there as long as something waits."""

    def __init__(self) -> None:
        self._waiting: deque[_Item] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, written: Written, item: "Written | list[_Told]") -> None:
        """Let *item*, what *written* is or has, wait for its turn."""
        if len(self._waiting) >= MAX_WAITING:
            _log_loss(written.transaction_id, f"{MAX_WAITING} others wait")
            return
        self._append(item)

    def barrier(self) -> threading.Event:
        """
        Return what is set when all that was put so far is told.

        Raises:
            RuntimeError: a subscriber asks, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(_WAITS_FOR_ITSELF)
        barrier = threading.Event()
        if self._thread is None:
            barrier.set()
        else:
            self._append(barrier)
        return barrier

    def _append(self, item: _Item) -> None:
        with self._lock:
            self._waiting.append(item)
            if self._thread is None:
                # No daemon: when the program ends, all is told first.
                self._thread = threading.Thread(target=Context().run, args=[self._run], name="sqlaudit", daemon=False)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                item = self._waiting.popleft()
            if isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, Written):
                self._tell_written(item)
            elif isinstance(item, list):
                self._tell(item)

    def _tell_written(self, written: Written) -> None:
        try:
            for told in _pages(written):
                _log_telling(written, told)
                self._tell(told)
        except Exception as error:  # noqa: BLE001
            _log_loss(written.transaction_id, _FAILED, error)

    def _tell(self, told: list[_Told]) -> None:
        for subscriber, change in _calls(told):
            # Whatever it raises, here it ends nothing: a thread isn't the program.
            with _logging_failures(subscriber, change, lambda _: True):
                result = subscriber.callback(change)
                if isawaitable(result):
                    asyncio.run(_awaited(result))


line_of_thread: Final = _ThreadLine()


def _forget_after_fork() -> None:
    """What waits, and who tells it, are the parent's: the child would tell it again."""
    _lines.clear()
    line_of_thread.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

_WAITS_FOR_ITSELF: Final = (
    "A subscriber can't wait until all changes are told: the one that it was called with would have to be, too."
)


async def _awaited(result: Awaitable[Any]) -> None:
    await result


def _calls(told: Iterable[_Told]) -> Iterator[tuple[Subscriber, Change]]:
    """Yield whom to call with what, leaving out who was removed in the meantime."""
    for change, subscribers in told:
        for subscriber in subscribers:
            if subscriber in _subscribers:
                yield subscriber, change


# --- what the log is told: ids and kinds, no values -------------------------------------------------------------------


@contextmanager
def _logging_failures(
    subscriber: Subscriber, change: Change, is_its_own: Callable[[BaseException], bool]
) -> Iterator[None]:
    """
    Let the log say what failed, and where; not the error's message, which may hold values.

    Then the next subscriber is called, unless the error isn't its own.
    """
    try:
        yield
    except BaseException as error:
        if not is_its_own(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        transaction_id = str(change.transaction_id)
        _logger.warning(
            "The subscriber %s failed with %s (%s, line %s) at change %s of transaction %s.",
            *(subscriber.name, type(error).__qualname__, place.filename, place.lineno),
            *(change.change_id, transaction_id),
            extra={
                **_named(subscriber),
                "error": type(error).__qualname__,
                "change_id": change.change_id,
                "transaction_id": transaction_id,
            },
        )


def _log_telling(written: Written, told: list[_Told]) -> None:
    transaction_id = str(written.transaction_id)
    extra = {"transaction_id": transaction_id, "changes": len(told)}
    _logger.debug("Telling subscribers changes of transaction %s: %s.", transaction_id, len(told), extra=extra)


_FAILED: Final = "reading them failed with "
_ENDED: Final = "their event loop ended, or the task that tells them"


def _log_loss(transaction_id: uuid.UUID, why: str, error: BaseException | None = None) -> None:
    kind = {} if error is None else {"error": type(error).__qualname__}
    _logger.warning(
        "Subscribers weren't told of all changes of transaction %s, which are in the trail: %s%s.",
        transaction_id,
        why,
        kind.get("error", ""),
        extra={"transaction_id": str(transaction_id), **kind},
    )


def _named(subscriber: Subscriber) -> dict[str, Any]:
    return {"subscriber": subscriber.name}
