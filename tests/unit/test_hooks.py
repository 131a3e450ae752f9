"""Where auditing begins and ends: the targets of hooks, and what each of them hears."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from sqlaudit import (
    SQLAuditConfig,
    Subscription,
    audit_metadata,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.config import clear_config
from sqlaudit.exceptions import ConfigurationError

CHANGE = audit_metadata.tables["sqlaudit_change"]


class Base(DeclarativeBase):
    pass


@track_table()
class Thing(Base):
    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)


class CustomSession(Session):
    pass


class CustomAsyncSession(AsyncSession):
    sync_session_class = CustomSession


@pytest.fixture(name="engine")
def _engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(name="async_engine")
async def _async_engine() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture(autouse=True)
def _nothing_left_on_the_custom_class() -> Iterator[None]:
    yield
    Subscription(CustomSession).remove()


def acting_as(user: str) -> SQLAuditConfig:
    """Return a configuration whose changes are made by *user*, so that the trail says which one counted."""
    return SQLAuditConfig(get_user_id_callback=lambda: user)


def write(session: Session) -> list[str | None]:
    """Change one row, and return who the trail says has done it: once for each change that is recorded."""
    last = session.scalar(select(func.max(CHANGE.c.id))) or 0
    session.add(Thing())
    session.commit()
    recorded = list(session.scalars(select(CHANGE.c.changed_by).where(CHANGE.c.id > last)))
    session.rollback()
    return recorded


async def write_async(maker: Callable[[], AsyncSession]) -> list[str | None]:
    """Change one row through a session of *maker*, and return who has done it."""
    async with maker() as session:
        return await session.run_sync(write)


# --- targets ---------------------------------------------------------------------------------------------------------

SYNC_TARGETS = [
    pytest.param(lambda maker, session: maker, id="sessionmaker"),
    pytest.param(lambda maker, session: scoped_session(maker), id="scoped_session"),
    pytest.param(lambda maker, session: maker.class_, id="its class"),
    pytest.param(lambda maker, session: CustomSession, id="a base of its class"),
    pytest.param(lambda maker, session: Session, id="Session"),
    pytest.param(lambda maker, session: session, id="session"),
]
ASYNC_TARGETS = [
    pytest.param(lambda maker, session: Session, id="Session"),
    pytest.param(lambda maker, session: session, id="session"),
    pytest.param(lambda maker, session: session.sync_session, id="sync_session"),
]


@pytest.mark.parametrize("choose", SYNC_TARGETS)
def test_changes_of_a_hooked_target_are_recorded(engine: Engine, choose: Callable[..., Any]) -> None:
    """Nothing is recorded before a target is hooked, one change after, and nothing once it is removed."""
    maker = sessionmaker(engine, class_=CustomSession)
    with maker() as session:
        before = write(session)
        subscription = register_hooks(choose(maker, session), config=acting_as("me"))
        hooked = write(session)
        subscription.remove()
        after = write(session)

    assert (before, hooked, after) == ([], ["me"], [])


@pytest.mark.parametrize("choose", ASYNC_TARGETS)
async def test_changes_of_a_hooked_async_target_are_recorded(
    async_engine: AsyncEngine, choose: Callable[..., Any]
) -> None:
    """Nothing is recorded before a target is hooked, one change after, and nothing once it is removed."""
    maker = async_sessionmaker(async_engine)
    async with maker() as session:
        before = await session.run_sync(write)
        subscription = register_hooks(choose(maker, session), config=acting_as("me"))
        hooked = await session.run_sync(write)
        subscription.remove()
        after = await session.run_sync(write)

    assert (before, hooked, after) == ([], ["me"], [])


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda maker: maker, id="async_sessionmaker"),
        pytest.param(lambda maker: async_scoped_session(maker, lambda: 1), id="async_scoped_session"),
    ],
)
async def test_what_a_hooked_async_maker_makes_is_recorded(async_engine: AsyncEngine, wrap: Callable[..., Any]) -> None:
    """The sessions that a maker makes from now on are recorded, and nothing once it is removed."""
    maker = async_sessionmaker(async_engine)
    before = await write_async(maker)

    subscription = register_hooks(wrap(maker), config=acting_as("me"))
    hooked = await write_async(maker)
    subscription.remove()
    after = await write_async(maker)

    assert (before, hooked, after) == ([], ["me"], [])


def test_without_a_target_every_session_is_hooked(engine: Engine) -> None:
    """`register_hooks()` is for all sessions of the process, those of other classes too."""
    set_config(acting_as("me"))

    register_hooks()

    with Session(engine) as session, CustomSession(engine) as custom, sessionmaker(engine)() as made:
        recorded = [write(session), write(custom), write(made)]
    assert recorded == [["me"], ["me"], ["me"]]


def test_one_session_alone_can_be_hooked(engine: Engine) -> None:
    """Another session of the same maker isn't recorded."""
    maker = sessionmaker(engine)
    with maker() as session, maker() as other:
        register_hooks(session, config=acting_as("me"))

        recorded = [write(session), write(other)]

    assert recorded == [["me"], []]


def test_one_sessionmaker_alone_can_be_hooked(engine: Engine) -> None:
    """Another maker's sessions, and those of no maker, aren't recorded."""
    maker, other = sessionmaker(engine), sessionmaker(engine)

    register_hooks(maker, config=acting_as("me"))

    with maker() as session, other() as another, Session(engine) as plain:
        recorded = [write(session), write(another), write(plain)]
    assert recorded == [["me"], [], []]


async def test_one_async_sessionmaker_alone_can_be_hooked(async_engine: AsyncEngine) -> None:
    """Makers share the class of their sessions; still, another maker's aren't recorded."""
    maker, other = async_sessionmaker(async_engine), async_sessionmaker(async_engine)

    register_hooks(maker, config=acting_as("me"))

    recorded = [await write_async(each) for each in (maker, other, lambda: AsyncSession(async_engine))]
    assert recorded == [["me"], [], []]


async def test_two_async_sessionmakers_are_hooked_apart(async_engine: AsyncEngine) -> None:
    """Each maker has its own configuration, and is removed without the other."""
    maker, other = async_sessionmaker(async_engine), async_sessionmaker(async_engine)
    subscription = register_hooks(maker, config=acting_as("me"))
    register_hooks(other, config=acting_as("you"))

    both = [await write_async(maker), await write_async(other)]
    subscription.remove()
    one = [await write_async(maker), await write_async(other)]

    assert both == [["me"], ["you"]]
    assert one == [[], ["you"]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"sync_session_class": CustomSession}, id="sync_session_class"),
        pytest.param({"class_": CustomAsyncSession}, id="class"),
        pytest.param({"sync_session_class": sessionmaker(class_=CustomSession)}, id="sessionmaker"),
    ],
)
async def test_hooked_sessions_are_of_the_class_that_the_user_chose(
    async_engine: AsyncEngine, options: dict[str, Any]
) -> None:
    """The sessions of a hooked maker still are what the maker was told to make."""
    maker: Any = async_sessionmaker(async_engine, **options)

    register_hooks(maker, config=acting_as("me"))

    async with maker() as session:
        assert isinstance(session.sync_session, CustomSession)
        assert await session.run_sync(write) == ["me"]


async def test_the_arguments_of_a_sessionmaker_under_an_async_one_are_kept(async_engine: AsyncEngine) -> None:
    """Hooking changes nothing of the sessions: what their maker gave them they still have."""
    inner: Any = sessionmaker(info={"tenant": 7})
    maker = async_sessionmaker(async_engine, sync_session_class=inner)
    async with maker() as session:
        before = dict(session.info)

    register_hooks(maker, config=acting_as("me"))

    async with maker() as session:
        after = dict(session.info)
    assert before == after == {"tenant": 7}


async def test_events_of_the_users_on_their_session_class_are_heard_still(async_engine: AsyncEngine) -> None:
    """A listener on the class under the maker hears the sessions of the maker also when it is hooked."""
    heard: list[Session] = []

    class Listened(Session):
        pass

    event.listen(Listened, "before_commit", heard.append)
    maker = async_sessionmaker(async_engine, sync_session_class=Listened)

    register_hooks(maker, config=acting_as("me"))
    await write_async(maker)

    assert len(heard) == 1


# --- twice, within one another, and no more --------------------------------------------------------------------------


@pytest.mark.parametrize("choose", SYNC_TARGETS)
def test_registering_twice_is_registering_once(engine: Engine, choose: Callable[..., Any]) -> None:
    """A target that is hooked twice is recorded once, and removing one subscription removes the hooks."""
    maker = sessionmaker(engine, class_=CustomSession)
    with maker() as session:
        register_hooks(choose(maker, session), config=acting_as("me"))
        subscription = register_hooks(choose(maker, session), config=acting_as("me"))

        hooked = write(session)
        subscription.remove()
        after = write(session)

    assert (hooked, after) == (["me"], [])


async def test_registering_an_async_sessionmaker_twice_is_registering_once(async_engine: AsyncEngine) -> None:
    """A maker that is hooked twice gets one class of its own, and its changes are recorded once."""
    maker = async_sessionmaker(async_engine)
    register_hooks(maker, config=acting_as("me"))
    own = maker.kw["sync_session_class"]

    register_hooks(maker, config=acting_as("me"))

    assert maker.kw["sync_session_class"] is own
    assert await write_async(maker) == ["me"]


@pytest.mark.parametrize("outer_first", [True, False], ids=["outer first", "inner first"])
def test_what_two_hooks_hear_is_recorded_once(engine: Engine, outer_first: bool) -> None:
    """A session that is hooked itself, by its maker and as any session is recorded once, in any order."""
    maker = sessionmaker(engine)
    with maker() as session:
        targets: list[Any] = [Session, maker, session] if outer_first else [session, maker, Session]
        for target in targets:
            register_hooks(target, config=acting_as("me"))

        recorded = write(session)

    assert recorded == ["me"]


@pytest.mark.parametrize("outer_first", [True, False], ids=["outer first", "inner first"])
@pytest.mark.parametrize("removed", [0, 1, 2], ids=["session", "maker", "Session"])
def test_removing_one_hook_leaves_the_others(engine: Engine, outer_first: bool, removed: int) -> None:
    """A session that several hooks hear is recorded as long as one of them is left."""
    maker = sessionmaker(engine)
    with maker() as session:
        targets: list[Any] = [session, maker, Session]
        order = [2, 1, 0] if outer_first else [0, 1, 2]
        subscriptions = {number: register_hooks(targets[number], config=acting_as("me")) for number in order}

        subscriptions.pop(removed).remove()
        left = write(session)
        for subscription in subscriptions.values():
            subscription.remove()
        none_left = write(session)

    assert (left, none_left) == (["me"], [])


def test_removing_twice_is_removing_once(engine: Engine) -> None:
    """A subscription that is over can be removed again."""
    maker = sessionmaker(engine)
    subscription = register_hooks(maker, config=acting_as("me"))

    subscription.remove()
    subscription.remove()

    with maker() as session:
        assert write(session) == []


def test_a_target_can_be_hooked_again(engine: Engine) -> None:
    """After a removal the same target can be hooked, with another configuration."""
    maker = sessionmaker(engine)
    register_hooks(maker, config=acting_as("me")).remove()

    register_hooks(maker, config=acting_as("you"))

    with maker() as session:
        assert write(session) == ["you"]


async def test_an_async_sessionmaker_can_be_hooked_again(async_engine: AsyncEngine) -> None:
    """After a removal the same maker can be hooked."""
    maker = async_sessionmaker(async_engine)
    register_hooks(maker, config=acting_as("me")).remove()
    unhooked = await write_async(maker)

    register_hooks(maker, config=acting_as("you"))

    assert (unhooked, await write_async(maker)) == ([], ["you"])


def test_a_subscription_is_a_context_manager(engine: Engine) -> None:
    """Within the block the target is hooked; at its end it isn't."""
    maker = sessionmaker(engine)

    with maker() as session:
        with register_hooks(maker, config=acting_as("me")) as subscription:
            within = write(session)
        after = write(session)

    assert isinstance(subscription, Subscription)
    assert (within, after) == (["me"], [])


def test_a_block_that_fails_removes_its_hooks(engine: Engine) -> None:
    """A block of hooks that ends by an exception lets it through, and the target isn't hooked any more."""
    maker = sessionmaker(engine)

    with pytest.raises(ZeroDivisionError), register_hooks(maker, config=acting_as("me")):
        raise ZeroDivisionError

    with maker() as session:
        assert write(session) == []


# --- configuration ---------------------------------------------------------------------------------------------------


def test_the_default_configuration_is_that_of_the_time_of_the_change(engine: Engine) -> None:
    """Without a configuration of its own, a target heeds the default, also one that is set later."""
    set_config(acting_as("me"))
    maker = sessionmaker(engine)
    register_hooks(maker)
    with maker() as session:
        first = write(session)
        set_config(acting_as("you"))

        second = write(session)

    assert (first, second) == (["me"], ["you"])


def test_a_configuration_of_ones_own_goes_before_the_default(engine: Engine) -> None:
    """What a target was hooked with counts, whatever the default is."""
    set_config(acting_as("default"))
    maker = sessionmaker(engine)

    register_hooks(maker, config=acting_as("me"))

    with maker() as session:
        assert write(session) == ["me"]


@pytest.mark.parametrize("outer_first", [True, False], ids=["outer first", "inner first"])
def test_the_closest_configuration_counts(engine: Engine, outer_first: bool) -> None:
    """A session's own configuration goes before its maker's, and that before the one of all sessions."""
    maker, other = sessionmaker(engine), sessionmaker(engine)
    with maker() as session, maker() as sibling, other() as stranger:
        hooks: list[tuple[Any, str]] = [(Session, "all"), (maker, "maker"), (session, "own")]
        for target, name in hooks if outer_first else reversed(hooks):
            register_hooks(target, config=acting_as(name))

        recorded = [write(each) for each in (session, sibling, stranger)]

    assert recorded == [["own"], ["maker"], ["all"]]


def test_hooking_again_with_another_configuration_replaces_it(engine: Engine) -> None:
    """Of two registrations of one target, the later one's configuration counts."""
    maker = sessionmaker(engine)
    register_hooks(maker, config=acting_as("me"))

    register_hooks(maker, config=acting_as("you"))

    with maker() as session:
        assert write(session) == ["you"]


def test_hooks_need_a_configuration(engine: Engine) -> None:
    """Without a default, and without one of its own, nothing is hooked, and the error says what to do."""
    maker = sessionmaker(engine)

    with pytest.raises(ConfigurationError) as caught:
        register_hooks(maker)

    assert str(caught.value) == (
        "Hooks need a configuration; call set_config(SQLAuditConfig(...)) before register_hooks(), or give config=."
    )
    with maker() as session:
        assert write(session) == []


def test_a_change_without_any_configuration_fails(engine: Engine) -> None:
    """If the default is taken away later, a change fails rather than going unrecorded."""
    set_config(acting_as("me"))
    maker = sessionmaker(engine)
    register_hooks(maker)

    clear_config()

    with maker() as session, pytest.raises(ConfigurationError, match="There is no configuration"):
        write(session)


def test_something_else_is_no_configuration() -> None:
    """A dictionary of arguments isn't taken for a configuration."""
    config: Any = {"time_zone": "UTC"}

    with pytest.raises(ConfigurationError, match=r"config is a dict; expected a SQLAuditConfig\.$"):
        register_hooks(config=config)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(None, id="None"),
        pytest.param("session", id="str"),
        pytest.param(5, id="int"),
        pytest.param(Thing, id="model"),
        pytest.param(AsyncSession, id="AsyncSession"),
        pytest.param(create_engine("sqlite://"), id="engine"),
        pytest.param(lambda: Session(), id="function"),  # noqa: PLW0108 (a function is what is meant)
        pytest.param(
            scoped_session(lambda: Session()),  # type: ignore[arg-type]  # noqa: PLW0108 (as above)
            id="scoped_session of a function",
        ),
    ],
)
def test_what_cannot_be_listened_to_is_refused(target: Any) -> None:
    """Anything but a maker, a Session class or a session is refused, and the error lists those."""
    with pytest.raises(ConfigurationError) as caught:
        register_hooks(target, config=SQLAuditConfig())

    assert str(caught.value).startswith("register_hooks() can't listen to ")
    assert str(caught.value).endswith(
        "; give a sessionmaker or async_sessionmaker, a Session class or one session, or nothing for every session."
    )
