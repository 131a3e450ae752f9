"""One implementation of an operation, for both colours of session."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.exceptions import ConfigurationError, RetrievalError

Result = TypeVar("Result")
ReadPart: TypeAlias = Callable[[Session, Any], tuple[Sequence[Result], Any]]
"""Reads the part that follows a mark, None for the first one; returns it with the next mark, None at the end."""

SessionFactory = Callable[[], Any]
"""A (async) sessionmaker, or anything that gives a (async) session when called, or a generator of one."""


def check_factory(factory: object) -> None:
    """
    Refuse what can't be a session factory, as far as that shows without calling it.

    Raises:
        ConfigurationError: it isn't callable, or it is a session or an engine.
    """
    if isinstance(factory, (Session, AsyncSession)) or not callable(factory):
        raise ConfigurationError(
            f"session_factory is a {type(factory).__name__}; expected an async_sessionmaker, a sessionmaker, or a "
            f"(async) generator function that yields a session."
        )
    if inspect.iscoroutinefunction(factory):
        raise ConfigurationError(
            "session_factory is a coroutine function; make it an async generator function that yields the session, "
            "so that it can be closed."
        )


def run(
    operation: Callable[[Session], Result],
    session: AsyncSession | Session | None,
    factory: SessionFactory | None,
) -> Result | Awaitable[Result]:
    """
    Run *operation* on the synchronous session under *session*, or on one of *factory*'s.

    The result is awaitable when the session is asynchronous.

    Raises:
        RetrievalError: there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    if session is None:
        opened = opened_by(factory)
        if isinstance(opened, AbstractAsyncContextManager):
            return _run_in_async(operation, opened)
        with opened as own:
            return operation(own)
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return session.run_sync(operation)
    return operation(checked(session))


def run_sync(operation: Callable[[Session], Result], session: Session | None, factory: SessionFactory | None) -> Result:
    """
    Run *operation* on *session*, or on one of *factory*'s, without an event loop.

    Raises:
        RetrievalError: the session is asynchronous, or there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    with _opened_sync(session, factory) as own:
        return operation(own)


def _opened_sync(session: Session | None, factory: SessionFactory | None) -> AbstractContextManager[Session]:
    """Return what gives *session*, or one of *factory*'s and closes it."""
    if session is not None:
        if isinstance(session, (AsyncSession, async_scoped_session)):
            raise RetrievalError("session is an AsyncSession; await the function without _sync in its name.")
        return nullcontext(checked(session))
    opened = opened_by(factory)
    if isinstance(opened, AbstractAsyncContextManager):
        raise RetrievalError(
            "session_factory makes an AsyncSession; await the function without _sync in its name, or give a Session."
        )
    return opened


def stream(
    read: ReadPart[Result],
    session: AsyncSession | Session | None,
    factory: SessionFactory | None,
) -> Generator[Result, None, None] | AsyncGenerator[Result, None]:
    """
    Yield what *read* gives, part by part, until it gives no state to go on from.

    Between two parts nothing is left open in the session but its transaction.

    Raises:
        RetrievalError: there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    if session is None:
        opened = opened_by(factory)
        if isinstance(opened, AbstractAsyncContextManager):
            return _stream_async(read, opened)
        return _stream(read, opened)
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return _stream_async(read, nullcontext(session))
    return _stream(read, nullcontext(checked(session)))


def stream_sync(
    read: ReadPart[Result],
    session: Session | None,
    factory: SessionFactory | None,
) -> Generator[Result, None, None]:
    """
    Yield what *read* gives, without an event loop.

    Raises:
        RetrievalError: the session is asynchronous, or there is neither a session nor a factory.
        ConfigurationError: the factory gives no session.
    """
    return _stream(read, _opened_sync(session, factory))


def _stream(
    read: ReadPart[Result],
    opened: AbstractContextManager[Session],
) -> Generator[Result, None, None]:
    with opened as session:
        part, state = read(session, None)
        yield from part
        while state is not None:
            part, state = read(session, state)
            yield from part


async def _stream_async(
    read: ReadPart[Result],
    opened: AbstractAsyncContextManager[AsyncSession],
) -> AsyncGenerator[Result, None]:
    async with opened as session:
        part, state = await session.run_sync(read, None)
        for each in part:
            yield each
        while state is not None:
            part, state = await session.run_sync(read, state)
            for each in part:
                yield each


def synchronous(session: AsyncSession | Session) -> Session:
    """
    Return the synchronous session under *session*, or itself.

    Raises:
        RetrievalError: it is no session.
    """
    if isinstance(session, async_scoped_session):
        session = session()
    return session.sync_session if isinstance(session, AsyncSession) else checked(session)


async def _run_in_async(
    operation: Callable[[Session], Result], opened: AbstractAsyncContextManager[AsyncSession]
) -> Result:
    async with opened as session:
        return await session.run_sync(operation)


def opened_by(
    factory: SessionFactory | None,
) -> AbstractContextManager[Session] | AbstractAsyncContextManager[AsyncSession]:
    """Return what opens a session of *factory*'s and closes it."""
    if factory is None:
        raise RetrievalError("There is no session; give session=, or a session_factory in SQLAuditConfig.")
    made = factory()
    if isinstance(made, (scoped_session, async_scoped_session)):
        made = made()
    if isinstance(made, Session):
        return _managed(made)
    if isinstance(made, AsyncSession):
        return _managed_async(made)
    if isinstance(made, Generator):
        return _managed(contextmanager(lambda: made)())
    if isinstance(made, AsyncGenerator):
        return _managed_async(asynccontextmanager(lambda: made)())
    if isinstance(made, AbstractAsyncContextManager):
        return _managed_async(made)
    if isinstance(made, AbstractContextManager):
        return _managed(made)
    raise _no_session(made)


@contextmanager
def _managed(made: AbstractContextManager[Any]) -> Iterator[Session]:
    with made as session:
        if not isinstance(session, (Session, scoped_session)):
            raise _no_session(session)
        yield session() if isinstance(session, scoped_session) else session


@asynccontextmanager
async def _managed_async(made: AbstractAsyncContextManager[Any]) -> AsyncIterator[AsyncSession]:
    async with made as session:
        if not isinstance(session, AsyncSession):
            raise _no_session(session)
        yield session


def checked(session: object) -> Session:
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session):
        raise RetrievalError(f"session is a {type(session).__name__}; expected an AsyncSession or a Session.")
    return session


def _no_session(made: object) -> ConfigurationError:
    return ConfigurationError(
        f"session_factory gave a {type(made).__name__}; expected it to make, or yield, an AsyncSession or a Session."
    )
