"""One operation, run with sessions of both colours, given or made."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from sqlaudit._bridge import SessionFactory, run, run_sync
from sqlaudit.exceptions import ConfigurationError, RetrievalError

Result = TypeVar("Result")
Make = Callable[[Any], SessionFactory]


@pytest.fixture(name="engine")
def _engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    yield engine
    engine.dispose()


@pytest.fixture(name="async_engine")
async def _async_engine() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    yield engine
    await engine.dispose()


class Operation:
    """Begins a transaction, which is over once the session was closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.sessions: list[Session] = []

    def __call__(self, session: Session) -> str:
        self.sessions.append(session)
        session.connection()
        if self.error is not None:
            raise self.error
        return "done"

    @property
    def all_closed(self) -> bool:
        """Whether there were sessions, and none is in a transaction any more."""
        return bool(self.sessions) and not any(session.in_transaction() for session in self.sessions)


async def awaited(result: Result | Awaitable[Result]) -> Result:
    """Return what was promised."""
    assert isinstance(result, Awaitable)
    found: Result = await result
    return found


# --- factories -------------------------------------------------------------------------------------------------------


def _generator_function(engine: Engine) -> SessionFactory:
    def get_db() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    return get_db


def _careful_generator_function(engine: Engine) -> SessionFactory:
    def get_db() -> Iterator[Session]:
        session = Session(engine)
        try:
            yield session
        finally:
            session.close()

    return get_db


def _context_manager(engine: Engine) -> SessionFactory:
    @contextmanager
    def opened() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    return opened


def _of_scoped_session(engine: Engine) -> SessionFactory:
    @contextmanager
    def opened() -> Iterator[scoped_session[Session]]:
        scoped = scoped_session(sessionmaker(engine))
        yield scoped
        scoped.remove()

    return opened


def _async_generator_function(engine: AsyncEngine) -> SessionFactory:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session:
            yield session

    return get_db


def _async_context_manager(engine: AsyncEngine) -> SessionFactory:
    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session:
            yield session

    return opened


SYNC = [
    pytest.param(sessionmaker, id="sessionmaker"),
    pytest.param(lambda engine: lambda: Session(engine), id="function"),
    pytest.param(lambda engine: scoped_session(sessionmaker(engine)), id="scoped_session"),
    pytest.param(_generator_function, id="generator function"),
    pytest.param(_careful_generator_function, id="generator function with finally"),
    pytest.param(_context_manager, id="context manager"),
    pytest.param(lambda engine: sessionmaker(engine).begin, id="sessionmaker.begin"),
]
ASYNC = [
    pytest.param(async_sessionmaker, id="async_sessionmaker"),
    pytest.param(lambda engine: lambda: AsyncSession(engine), id="function"),
    pytest.param(_async_generator_function, id="async generator function"),
    pytest.param(_async_context_manager, id="async context manager"),
    pytest.param(lambda engine: async_sessionmaker(engine).begin, id="async_sessionmaker.begin"),
]


# --- sessions of a factory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", [run, run_sync])
@pytest.mark.parametrize("make", [*SYNC, pytest.param(_of_scoped_session, id="of a scoped_session")])
def test_a_factory_of_sessions_gives_the_result_itself(engine: Engine, make: Make, runner: Any) -> None:
    """Whatever makes a Session, the operation gets one, its result is returned, and the session is closed."""
    operation = Operation()

    result = runner(operation, None, make(engine))

    assert result == "done"
    assert [isinstance(session, Session) for session in operation.sessions] == [True]
    assert operation.all_closed


@pytest.mark.parametrize("runner", [run, run_sync])
@pytest.mark.parametrize("make", SYNC)
def test_a_session_of_a_factory_is_closed_when_the_operation_fails(engine: Engine, make: Make, runner: Any) -> None:
    """The error of an operation comes through as it is, and the session is closed."""
    error = ZeroDivisionError("within")
    operation = Operation(error)

    with pytest.raises(ZeroDivisionError) as caught:
        runner(operation, None, make(engine))

    assert caught.value is error
    assert operation.all_closed


@pytest.mark.parametrize("make", ASYNC)
async def test_a_factory_of_async_sessions_gives_an_awaitable(async_engine: AsyncEngine, make: Make) -> None:
    """Whatever makes an AsyncSession, the operation gets the Session under it, and the session is closed."""
    operation = Operation()

    result = await awaited(run(operation, None, make(async_engine)))

    assert result == "done"
    assert [isinstance(session, Session) for session in operation.sessions] == [True]
    assert operation.all_closed


@pytest.mark.parametrize("make", ASYNC)
async def test_an_async_session_of_a_factory_is_closed_when_the_operation_fails(
    async_engine: AsyncEngine, make: Make
) -> None:
    """The error of an awaited operation comes through as it is, and the session is closed."""
    error = ZeroDivisionError("within")
    operation = Operation(error)

    with pytest.raises(ZeroDivisionError) as caught:
        await awaited(run(operation, None, make(async_engine)))

    assert caught.value is error
    assert operation.all_closed


def test_what_follows_the_yield_of_a_generator_runs() -> None:
    """A dependency with a yield is finished, as FastAPI would finish it."""
    happened: list[str] = []

    def get_db() -> Iterator[Session]:
        yield Session()
        happened.append("finished")

    run(lambda _: happened.append("operation"), None, get_db)

    assert happened == ["operation", "finished"]


def test_a_generator_sees_the_error_of_the_operation() -> None:
    """A dependency that rolls back in its except clause gets to do so."""
    happened: list[str] = []

    def get_db() -> Iterator[Session]:
        try:
            yield Session()
        except ZeroDivisionError:
            happened.append("rolled back")
            raise

    with pytest.raises(ZeroDivisionError):
        run(lambda _: 1 // 0, None, get_db)

    assert happened == ["rolled back"]


async def test_an_async_generator_sees_the_error_of_the_operation() -> None:
    """An asynchronous dependency that rolls back in its except clause gets to do so."""
    happened: list[str] = []

    async def get_db() -> AsyncIterator[AsyncSession]:
        try:
            yield AsyncSession()
        except ZeroDivisionError:
            happened.append("rolled back")
            raise

    with pytest.raises(ZeroDivisionError):
        await awaited(run(lambda _: 1 // 0, None, get_db))

    assert happened == ["rolled back"]


def test_a_factory_may_return_a_scoped_session(engine: Engine) -> None:
    """A function that returns a scoped_session gives a session, as one that yields it does."""
    operation = Operation()
    scoped = scoped_session(sessionmaker(engine))

    result = run(operation, None, lambda: scoped)

    assert result == "done"


def _yields_a_number() -> Iterator[int]:
    yield 1


@contextmanager
def _opens_a_number() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("runner", [run, run_sync])
@pytest.mark.parametrize("factory", [lambda: 1, _yields_a_number, _opens_a_number], ids=["made", "yielded", "opened"])
def test_a_factory_that_gives_no_session_is_an_error(factory: SessionFactory, runner: Any) -> None:
    """What isn't a session is named, and the operation isn't run."""
    operation = Operation()

    with pytest.raises(ConfigurationError) as caught:
        runner(operation, None, factory)

    assert str(caught.value) == (
        "session_factory gave a int; expected it to make, or yield, an AsyncSession or a Session."
    )
    assert operation.sessions == []


def test_a_factory_that_gives_none_is_an_error() -> None:
    """A function that forgets to return the session is no factory."""
    with pytest.raises(ConfigurationError, match="gave a NoneType"):
        run(Operation(), None, lambda: None)


async def test_an_async_factory_that_gives_no_session_is_an_error() -> None:
    """An asynchronous generator of something else is named when it is awaited."""

    async def yields_a_session() -> AsyncIterator[Session]:
        yield Session()

    with pytest.raises(ConfigurationError, match="session_factory gave a Session; expected"):
        await awaited(run(Operation(), None, yields_a_session))


@pytest.mark.parametrize("runner", [run, run_sync])
def test_without_a_session_and_a_factory_there_is_nothing_to_ask(runner: Any) -> None:
    """With neither, the error names both."""
    with pytest.raises(RetrievalError, match=r"give session=, or a session_factory in SQLAuditConfig\.$"):
        runner(Operation(), None, None)


@pytest.mark.parametrize("make", ASYNC)
async def test_a_factory_of_async_sessions_is_refused_by_synchronous_code(
    async_engine: AsyncEngine, make: Make
) -> None:
    """Without an event loop, a factory of AsyncSessions is refused before anything is opened."""
    operation = Operation()

    with pytest.raises(RetrievalError, match="session_factory makes an AsyncSession; await the function without _sync"):
        run_sync(operation, None, make(async_engine))

    assert operation.sessions == []


# --- sessions that are given -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", [run, run_sync])
def test_a_given_session_is_used_and_left_open(engine: Engine, runner: Any) -> None:
    """The user's session is the user's to close; the factory isn't asked."""
    operation = Operation()

    with Session(engine) as session:
        result = runner(operation, session, lambda: 1 // 0)
        still_open = session.in_transaction()

    assert result == "done"
    assert operation.sessions == [session]
    assert still_open


@pytest.mark.parametrize("runner", [run, run_sync])
def test_a_given_scoped_session_is_used(engine: Engine, runner: Any) -> None:
    """A scoped_session stands for the session of its scope."""
    operation = Operation()
    scoped = scoped_session(sessionmaker(engine))

    runner(operation, scoped, None)

    assert operation.sessions == [scoped()]
    scoped.remove()


async def test_a_given_async_session_is_used_and_left_open(async_engine: AsyncEngine) -> None:
    """The operation runs on the Session under the AsyncSession, which stays open."""
    operation = Operation()

    async with AsyncSession(async_engine) as session:
        result = await awaited(run(operation, session, None))
        still_open = session.in_transaction()

    assert result == "done"
    assert operation.sessions == [session.sync_session]
    assert still_open


async def test_a_given_async_scoped_session_is_used(async_engine: AsyncEngine) -> None:
    """An async_scoped_session stands for the session of its scope."""
    operation = Operation()
    scoped: Any = async_scoped_session(async_sessionmaker(async_engine), scopefunc=lambda: 1)

    result = await awaited(run(operation, scoped, None))

    assert result == "done"
    assert operation.sessions == [scoped().sync_session]
    await scoped.remove()


async def test_a_given_async_session_is_refused_by_synchronous_code(async_engine: AsyncEngine) -> None:
    """Without an event loop an AsyncSession is of no use; the error names the function to await."""
    session: Any = AsyncSession(async_engine)

    with pytest.raises(RetrievalError, match="session is an AsyncSession; await the function without _sync"):
        run_sync(Operation(), session, None)


@pytest.mark.parametrize("runner", [run, run_sync])
def test_what_is_no_session_is_refused(engine: Engine, runner: Any) -> None:
    """An engine where a session is meant is refused."""
    with pytest.raises(RetrievalError, match=r"session is a Engine; expected an AsyncSession or a Session\.$"):
        runner(Operation(), engine, None)
