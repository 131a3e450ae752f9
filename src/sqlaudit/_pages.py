"""Reading page by page, in both colours: no more than one page is in memory."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session

from sqlaudit._bridge import SessionFactory, checked, opened_by
from sqlaudit.exceptions import RetrievalError

__all__ = ["ReadPage", "stream", "stream_sync"]

Item = TypeVar("Item")

ReadPage: TypeAlias = Callable[[Session, Any], tuple[list[Item], Any]]
"""Reads the page after a mark, None for the first; and returns the next mark, None at the end."""


def stream(
    read_page: ReadPage[Item], session: AsyncSession | Session | None, factory: SessionFactory | None
) -> Iterator[Item] | AsyncIterator[Item]:
    """
    Iterate over what *read_page* reads with *session*, or with a session of *factory*'s.

    The iterator is asynchronous when the session is.

    Raises:
        RetrievalError: there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return _items_async(read_page, session)
    if session is not None:
        return _items(read_page, checked(session))
    opened = opened_by(factory)
    if isinstance(opened, AbstractAsyncContextManager):
        return _items_async_within(read_page, opened)
    return _items_within(read_page, opened)


def stream_sync(read_page: ReadPage[Item], session: Session | None, factory: SessionFactory | None) -> Iterator[Item]:
    """
    Iterate over what *read_page* reads with *session*, or with a session of *factory*'s, without an event loop.

    Raises:
        RetrievalError: the session is asynchronous, or there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    if isinstance(session, (AsyncSession, async_scoped_session)):
        raise RetrievalError("session is an AsyncSession; iterate over the function without _sync in its name.")
    if session is not None:
        return _items(read_page, checked(session))
    opened = opened_by(factory)
    if isinstance(opened, AbstractAsyncContextManager):
        raise RetrievalError(
            "session_factory makes an AsyncSession; iterate over the function without _sync in its name, or give a "
            "Session."
        )
    return _items_within(read_page, opened)


def _items(read_page: ReadPage[Item], session: Session) -> Iterator[Item]:
    mark = None
    while True:
        items, mark = read_page(session, mark)
        yield from items
        if mark is None:
            return


def _items_within(read_page: ReadPage[Item], opened: AbstractContextManager[Session]) -> Iterator[Item]:
    with opened as session:
        yield from _items(read_page, session)


async def _items_async(read_page: ReadPage[Item], session: AsyncSession) -> AsyncIterator[Item]:
    mark = None
    while True:
        items, mark = await session.run_sync(read_page, mark)
        for item in items:
            yield item
        if mark is None:
            return


async def _items_async_within(
    read_page: ReadPage[Item], opened: AbstractAsyncContextManager[AsyncSession]
) -> AsyncIterator[Item]:
    async with opened as session:
        async for item in _items_async(read_page, session):
            yield item
