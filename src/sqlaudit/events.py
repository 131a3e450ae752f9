"""Hearing of committed changes."""

import asyncio
import datetime as dt
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from sqlalchemy import Table

from sqlaudit._delivery import (
    Callback,
    Subscriber,
    add_subscriber,
    line_of_loop,
    line_of_thread,
    remove_subscriber,
)
from sqlaudit._filters import checked_filter
from sqlaudit.exceptions import ConfigurationError, RetrievalError
from sqlaudit.types import Change, Model

__all__ = ["ChangeSubscription", "drain_changes", "drain_changes_sync", "on_change"]

GivenCallback = TypeVar("GivenCallback", bound=Callback)


class ChangeSubscription:
    """
    What `on_change` returns: the subscription of one callback.

    As a context manager, it ends with the block.
    """

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        add_subscriber(subscriber)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Call it no more, not even for what waits to be told. Doing it twice is doing it once."""
        remove_subscriber(self._subscriber)


@overload
def on_change(*models: Model) -> Callable[[GivenCallback], GivenCallback]: ...
@overload
def on_change(callback: Callable[[Change], Any], /, *models: Model) -> ChangeSubscription: ...
def on_change(callback: Any = None, /, *models: Any) -> Any:
    """
    Call a function with every change that sessions of this process commit from now on.

        subscription = on_change(push_to_browsers, Order, Invoice)

        @on_change(Customer)
        async def forget_cached(change: Change) -> None: ...

    It is called with one `Change` after the other, as `get_changes` returns them:
    those of a transaction in the order of the trail, transactions in the order in
    which they ended. The transaction is over then, and the application has gone
    on: what the function raises is logged, and how long it takes delays the next
    call alone. What was rolled back, a savepoint too, is never told.

    The changes of an `AsyncSession` are told by a task of its event loop; a plain
    function is called there, so it mustn't block. Those of a `Session` are told by
    a thread; a coroutine function gets an event loop of its own there. Either way,
    the function acts in no audit context.

    It says what this process has committed while the function was subscribed, once, and
    if the process lives on: for what must not be lost, read the trail. Changes of other
    programs, raw connections and `create_baseline` aren't told.

    Args:
        callback: a function or coroutine function of one change; as a decorator, the
            function that follows.
        models: tracked models or Core tables, with their subclasses; all, if none is given.

    Returns:
        The subscription, to end it with; as a decorator, the function itself.

    Raises:
        ConfigurationError: *callback* can't be called, or a model is none.
    """
    if callback is None or isinstance(callback, (type, Table)):
        return _decorator(() if callback is None else (callback, *models))
    if not callable(callback):
        raise ConfigurationError(f"callback is {callback!r}; expected a function of one change.")
    return ChangeSubscription(Subscriber(callback, _checked(models)))


def _checked(models: Any) -> tuple[Model, ...] | None:
    try:
        return checked_filter(models or None, dt.UTC).models
    except RetrievalError as error:
        raise ConfigurationError(str(error)) from error


def _decorator(models: tuple[Model, ...]) -> Callable[[GivenCallback], GivenCallback]:
    checked = _checked(models)

    def subscribed(callback: GivenCallback) -> GivenCallback:
        add_subscriber(Subscriber(callback, checked))
        return callback

    return subscribed


async def drain_changes() -> None:
    """
    Wait until all that was committed so far is told: before a program ends, and in tests.

    That is what sessions of the running event loop have committed, and synchronous ones.

    Raises:
        RuntimeError: a subscriber calls it, and would wait for itself.
    """
    of_loop, of_thread = line_of_loop().barrier(), line_of_thread.barrier()
    await of_loop.wait()
    await asyncio.to_thread(of_thread.wait)


def drain_changes_sync(timeout: float | None = None) -> bool:
    """
    Wait until all that synchronous sessions have committed so far is told.

    A program that ends does so by itself.

    Args:
        timeout: at most so many seconds.

    Returns:
        Whether it is told.

    Raises:
        RuntimeError: a subscriber calls it, and would wait for itself.
    """
    return line_of_thread.barrier().wait(timeout)
