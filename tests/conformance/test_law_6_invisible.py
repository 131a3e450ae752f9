"""Law 6: auditing changes nothing that the application can see."""

import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    InstanceState,
    Mapped,
    Session,
    class_mapper,
    configure_mappers,
    defer,
    mapped_column,
)
from sqlalchemy.orm.exc import StaleDataError

from conformance_models import Account, Base, Entry, Maker, Page, Topic, Truck, begin_auditing
from observing import Sent, sent_statements, stored_rows, stored_trail
from sqlaudit import SQLAuditConfig, audit_context, register_hooks, set_config, track_table
from sqlaudit.tables import change_table
from sqlaudit.tracking import tracking_of

# --- one program, with and without hooks -----------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What the application saw of one run of a program."""

    states: list[Any] = field(default_factory=list)
    """The session and its objects, whenever the program looked."""
    events: list[tuple[Any, ...]] = field(default_factory=list)
    """The events of attributes, objects and the session, in their order."""
    sent: list[Sent] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    """What the program got back: row counts, rows, the kinds of errors."""


BEHIND_THE_BACK: dict[str, Any] = {"sqlaudit": False, "synchronize_session": False}
"""The options of a statement that neither the trail nor the session learns of."""

Program = Callable[[AsyncSession, Seen], Awaitable[None]]


def look(session: AsyncSession, seen: Seen) -> None:
    """Note what *session* holds, and what its objects know; nothing is loaded by it."""
    sync = session.sync_session
    seen.states.append(
        {
            "new": sorted(type(each).__name__ for each in sync.new),
            "dirty": sorted(str(inspect(each).identity) for each in sync.dirty),
            "deleted": sorted(str(inspect(each).identity) for each in sync.deleted),
            "identity_map": {
                f"{key[0].__name__} {key[1]}": describe(inspect(each)) for key, each in sorted_items(sync)
            },
            "in_transaction": (sync.in_transaction(), sync.in_nested_transaction(), sync.is_active),
        }
    )


def sorted_items(session: Session) -> list[tuple[Any, Any]]:
    """Return the identity map's items in an order of their own."""
    found = [(key, session.identity_map[key]) for key in session.identity_map.keys()]
    return sorted(found, key=lambda item: (item[0][0].__name__, item[0][1]))


def describe(state: InstanceState[Any]) -> dict[str, Any]:
    """Return what an object knows: its loaded values, and what of it is expired, unloaded, changed."""
    return {
        "values": {
            key: value for key, value in sorted(state.dict.items()) if isinstance(value, (int, str, type(None)))
        },
        "expired": sorted(state.expired_attributes),
        "unloaded": sorted(state.unloaded),
        "modified": state.modified,
        "committed": sorted(state.committed_state),
        "persistent": (state.persistent, state.deleted, state.detached, state.expired),
    }


MODELS = (Account, Entry, Page, Topic, Truck)


@contextlib.contextmanager
def heard_events(sync_session_class: type[Session]) -> Iterator[list[tuple[Any, ...]]]:
    """Give the list of all that happens to the models' attributes and objects and to the sessions in the block."""
    heard: list[tuple[Any, ...]] = []
    listening: list[tuple[Any, str, Any]] = []

    def listen(target: Any, name: str, listener: Any, **options: Any) -> None:
        event.listen(target, name, listener, **options)
        listening.append((target, name, listener))

    def hear(*what: Any) -> Any:
        def listener(*args: Any, **_: Any) -> None:
            details = [each for each in args if isinstance(each, (str, int, tuple, list)) or each is None]
            heard.append((*what, *map(str, details)))

        return listener

    for model in MODELS:
        for name in ("load", "refresh", "refresh_flush", "expire", "init"):
            listen(model, name, hear(model.__name__, name))
        for name in ("before_insert", "before_update", "before_delete", "after_insert", "after_update", "after_delete"):
            listen(model, name, hear(model.__name__, name))
        for key in class_mapper(model).attrs.keys():
            kinds = ("append", "remove") if key in ("entries", "topics") else ("set", "remove")
            for name in (*kinds, "modified"):
                listen(getattr(model, key), name, hear(model.__name__, key, name))
    for name in (
        "before_flush", "after_flush", "after_flush_postexec", "before_commit", "after_commit", "after_begin",
        "after_rollback", "after_soft_rollback", "do_orm_execute", "transient_to_pending", "pending_to_persistent",
        "loaded_as_persistent", "persistent_to_deleted", "deleted_to_detached", "after_transaction_create",
        "after_transaction_end", "before_attach", "after_attach",
    ):  # fmt: skip
        listen(sync_session_class, name, hear("session", name))
    try:
        yield heard
    finally:
        for target, name, listener in listening:
            event.remove(target, name, listener)


async def run(engine: AsyncEngine, program: Program, *, hooked: bool) -> Seen:
    """Run *program* on fresh tables, in a session of a maker of its own, and return what was seen."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)

    class OwnSession(Session):
        pass

    maker = async_sessionmaker(engine, sync_session_class=OwnSession)
    if hooked:
        set_config(SQLAuditConfig(get_user_id_callback=lambda: 1))
        register_hooks(maker)
    seen = Seen()
    with heard_events(OwnSession) as seen.events, sent_statements(engine) as seen.sent:
        async with maker() as session:
            await program(session, seen)
    return seen


async def everyday(session: AsyncSession, seen: Seen) -> None:
    """Insert, change, relate, delete and roll back objects that are loaded."""
    ann = Account(id=1, owner="Ann", note="none")
    bob = Account(id=2, owner="Bob", note="none", entries=[Entry(id=1, line="a")])
    session.add_all([ann, bob, Page(id=1, title="a", edited_by=3), Truck(id=1, plate="AB", load=3)])
    look(session, seen)
    await session.flush()
    look(session, seen)
    ann.balance, ann.note = 5, "five"
    bob.visits = 1
    look(session, seen)
    await session.flush()
    look(session, seen)
    bob.entries.append(Entry(id=2, line="b"))
    async with session.begin_nested():
        ann.balance = 6
        look(session, seen)
    look(session, seen)
    page = await session.get_one(Page, 1)
    await session.delete(page)
    look(session, seen)
    await session.flush()
    look(session, seen)
    await session.rollback()
    look(session, seen)


async def expired_and_computed(session: AsyncSession, seen: Seen) -> None:
    """Change and delete objects whose old values, or new ones, nobody has in memory."""
    accounts = [Account(id=number, owner=f"owner {number}") for number in range(1, 6)]
    session.add_all([*accounts, Truck(id=1, plate="AB", load=3), Truck(id=2, plate="CD", load=4)])
    await session.commit()
    look(session, seen)
    for account in accounts[:3]:
        account.balance = 7
    accounts[3].note = "four"
    look(session, seen)
    await session.flush()
    look(session, seen)
    accounts[0].balance = Account.balance + 1
    session.sync_session.expire(accounts[1], ["note"])
    accounts[1].note = "one"
    look(session, seen)
    await session.flush()
    look(session, seen)
    await session.commit()
    session.expunge_all()
    deferred = (await session.scalars(select(Account).options(defer(Account.note)).order_by(Account.id))).all()
    deferred[2].note = "three"
    trucks = (await session.scalars(select(Truck).order_by(Truck.id))).all()
    session.sync_session.expire(trucks[0])
    trucks[0].load = 9
    await session.delete(deferred[4])
    await session.delete(trucks[1])
    look(session, seen)
    await session.flush()
    look(session, seen)
    await session.commit()
    look(session, seen)


async def results_and_errors(session: AsyncSession, seen: Seen) -> None:
    """Note what statements and failing flushes give back."""
    session.add_all([Account(id=1, owner="Ann"), Account(id=2, owner="Bob")])
    await session.commit()
    executed: Any = await session.execute(insert(Entry).values(id=1, line="a"))
    seen.results.append((executed.rowcount, tuple(executed.inserted_primary_key)))
    executed = await session.execute(update(Entry).values(line="b"))
    seen.results.append(executed.rowcount)
    executed = await session.execute(delete(Entry).returning(Entry.id))
    seen.results.append(executed.all())
    seen.results.append((await session.execute(select(Account.id, Account.owner).order_by(Account.id))).all())
    look(session, seen)
    session.add(Account(id=3, owner="Ann"))
    try:
        await session.flush()
    except IntegrityError as error:
        seen.results.append(type(error))
    look(session, seen)
    await session.rollback()
    look(session, seen)
    ann = await session.get_one(Account, 1)
    await session.execute(delete(Account).where(Account.id == 1).execution_options(**BEHIND_THE_BACK))
    ann.balance = 3
    try:
        await session.flush()
    except StaleDataError as error:
        seen.results.append(str(error))
    look(session, seen)
    await session.rollback()
    seen.results.append(await session.scalar(select(Account.balance).where(Account.id == 1)))


PROGRAMS: list[Program] = [everyday, expired_and_computed, results_and_errors]


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.__name__, name="runs")
async def _runs(request: pytest.FixtureRequest, engine: AsyncEngine) -> tuple[Seen, Seen]:
    """What is seen of one program without hooks, and with them."""
    plain = await run(engine, request.param, hooked=False)
    assert await stored_trail(engine) == []
    hooked = await run(engine, request.param, hooked=True)
    assert any(each.concerns_trail for each in hooked.sent)
    return plain, hooked


async def test_session_and_objects_look_the_same(runs: tuple[Seen, Seen]) -> None:
    """Hooks leave new, dirty, deleted, the identity map, and what objects have loaded, expired and changed, alone."""
    plain, hooked = runs

    assert len(plain.states) == len(hooked.states)
    for without, with_hooks in zip(plain.states, hooked.states, strict=True):
        assert with_hooks == without


async def test_events_are_the_same(runs: tuple[Seen, Seen]) -> None:
    """Hooks cause no event of an attribute, an object, a mapper or the session, a second flush least of all."""
    plain, hooked = runs

    assert hooked.events == plain.events


async def test_results_and_errors_are_the_same(runs: tuple[Seen, Seen]) -> None:
    """Hooks change no result, no row count and no error."""
    plain, hooked = runs

    assert hooked.results == plain.results


async def test_statements_are_the_same_but_for_the_trail_and_its_selects(runs: tuple[Seen, Seen]) -> None:
    """Hooks leave statements, parameters and their order alone; they add INSERTs of the trail and SELECTs."""
    plain, hooked = runs
    expected = iter(plain.sent)

    added, awaited = [], next(expected, None)
    for each in hooked.sent:
        if each == awaited:
            awaited = next(expected, None)
        else:
            added.append(each)

    assert awaited is None
    assert [
        each for each in added if each.verb != "SELECT" and not each.sql.startswith("INSERT INTO sqlaudit_change")
    ] == []


async def test_loaded_objects_are_written_without_any_select(engine: AsyncEngine) -> None:
    """Where everything is in memory, all that hooks add are the INSERTs of the trail."""
    plain = await run(engine, everyday, hooked=False)
    hooked = await run(engine, everyday, hooked=True)

    assert [each for each in hooked.sent if not each.concerns_trail] == plain.sent


# --- what must not happen, one by one --------------------------------------------------------------------------------


async def test_expired_attributes_are_set_without_io(engine: AsyncEngine, maker: Maker) -> None:
    """An expired attribute is assigned outside of the greenlet, nothing is loaded by it, and the flush works."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        ann = Account(id=1, owner="Ann", note="old")
        truck = Truck(id=1, plate="AB", load=1)
        session.add_all([ann, truck])
        await session.commit()
        with sent_statements(engine) as sent:
            ann.owner, ann.balance, ann.note = "Anna", 3, None
            truck.plate, truck.load = "CD", 2
        loaded = {"owner", "balance", "note"} & inspect(ann).unloaded
        await session.commit()

    assert sent == []
    assert loaded == set()
    assert [
        (change.resource_type, change.old_values, change.new_values)
        for change in sorted((await stored_trail(engine))[3:], key=lambda change: change.resource_type)
    ] == [
        ("Account", {"owner": "Ann", "balance": 0, "note": "old"}, {"owner": "Anna", "balance": 3, "note": None}),
        ("Truck", {"load": 1}, {"load": 2}),
        ("Vehicle", {"plate": "AB"}, {"plate": "CD"}),
    ]


async def test_expired_attributes_are_set_in_a_session_with_pending_changes(engine: AsyncEngine, maker: Maker) -> None:
    """Assigning to an expired attribute triggers no autoflush of what is pending."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        ann, bob = Account(id=1, owner="Ann"), Account(id=2, owner="Bob")
        session.add_all([ann, bob])
        await session.commit()
        session.add(Account(id=3, owner="Cat"))
        with sent_statements(engine) as sent:
            ann.balance = 3
            bob.owner = "Bert"
        pending = len(session.new)
        await session.commit()

    assert sent == []
    assert pending == 1
    assert [change.operation for change in await stored_trail(engine)].count("update") == 2


async def test_no_attribute_gets_active_history(engine: AsyncEngine, maker: Maker) -> None:
    """A tracked model's attributes remember old values as much as those of the same model untracked, and no more."""

    class Models(DeclarativeBase):
        pass

    class Columns:
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        score: Mapped[int | None] = mapped_column(active_history=True)

    @track_table()
    class Tracked(Columns, Models):
        __tablename__ = "tracked"

    class Untracked(Columns, Models):
        __tablename__ = "untracked"

    def active(model: type[Models]) -> dict[str, bool]:
        return {key: getattr(model, key).impl.active_history for key in inspect(model).attrs.keys()}

    await begin_auditing(engine, maker)
    async with engine.begin() as connection:
        await connection.run_sync(Models.metadata.create_all)
    async with maker() as session:
        row = Tracked(id=1, name="a")
        session.add(row)
        await session.commit()
        row.name = "b"
        await session.commit()
    configure_mappers()

    assert active(Tracked) == active(Untracked)
    assert active(Tracked)["name"] is False
    assert len(await stored_trail(engine)) == 2


async def test_trail_is_neither_mapped_nor_tracked(engine: AsyncEngine, maker: Maker) -> None:
    """The trail's rows are no objects of the session, and writing them isn't a change of its own."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        ann = Account(id=1, owner="Ann")
        session.add(ann)
        await session.flush()
        objects = [*session, *session.new, *session.dirty, *session.deleted]
        await session.commit()

    assert objects == [ann]
    assert tracking_of(change_table) is None
    assert [change.what for change in await stored_trail(engine)] == [("insert", "Account", "1")]


async def test_hooks_keep_no_object_alive(engine: AsyncEngine, maker: Maker) -> None:
    """What was flushed, also in vain, can be collected as soon as the application lets go of it."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        good = Account(id=1, owner="Ann")
        session.add(good)
        await session.flush()
        flushed = weakref.ref(good)
        del good
        gc.collect()
        after_flush = flushed()
        bad = Account(id=2, owner="Ann")
        session.add(bad)
        with pytest.raises(IntegrityError):
            await session.flush()
        await session.rollback()
        failed = weakref.ref(bad)
        del bad
        gc.collect()
        after_failure = failed()

    assert after_flush is None
    assert after_failure is None


async def test_session_that_is_not_hooked_leaves_no_trail(engine: AsyncEngine, maker: Maker) -> None:
    """Hooks on one maker leave the sessions of another, on the same engine, as they are; also its bulk statements."""
    await begin_auditing(engine, maker)
    other = Maker(engine)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()

    async with other() as session:
        session.add(Account(id=2, owner="Bob"))
        await session.flush()
        await session.execute(update(Account).values(balance=3))
        await session.commit()

    assert await stored_rows(engine, "id, balance", "account") == [(1, 3), (2, 3)]
    assert [change.what for change in await stored_trail(engine)] == [("insert", "Account", "1")]


async def test_engine_is_left_alone_beside_its_hooked_sessions(engine: AsyncEngine, maker: Maker) -> None:
    """A connection of the engine that no session uses executes what it likes, also while a hooked session is open."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        async with engine.begin() as connection:
            await connection.execute(update(Account).values(note="by the engine"))

    assert await stored_rows(engine, "id, note", "account") == [(1, "by the engine")]
    assert len(await stored_trail(engine)) == 1


async def test_connection_is_left_alone_after_its_session_was_closed(engine: AsyncEngine, maker: Maker) -> None:
    """A connection that the caller lent to a hooked session executes what it likes when the session is closed."""
    await begin_auditing(engine, maker)

    async with engine.connect() as connection:
        async with maker(bind=connection) as session:
            session.add(Account(id=1, owner="Ann"))
            await session.commit()
        await connection.execute(update(Account).values(balance=3))
        await connection.commit()

    assert await stored_rows(engine, "id, balance", "account") == [(1, 3)]
    assert len(await stored_trail(engine)) == 1


async def test_removed_hooks_leave_nothing_behind(engine: AsyncEngine, maker: Maker) -> None:
    """After the subscription's block the session goes on without hooks, in the transaction that they have seen."""
    await begin_auditing(engine, maker)

    class Own(Session):
        pass

    async with async_sessionmaker(engine, sync_session_class=Own)() as session:
        with register_hooks(Own):
            session.add(Account(id=1, owner="Ann"))
            await session.flush()
        session.add(Account(id=2, owner="Bob"))
        with sent_statements(engine) as sent:
            await session.flush()
            await session.execute(update(Account).values(balance=3))
        await session.commit()

    assert [each.verb for each in sent] == ["INSERT", "UPDATE"]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 3), (2, 3)]
    assert [change.what for change in await stored_trail(engine)] == [("insert", "Account", "1")]


async def test_reading_is_left_alone(engine: AsyncEngine, maker: Maker) -> None:
    """A session that only reads sends what it reads, and nothing else."""
    await begin_auditing(engine, maker)

    with audit_context(user_id=1), sent_statements(engine) as sent:
        async with maker() as session:
            await session.scalars(select(Account))
            await session.commit()

    assert [each.verb for each in sent] == ["SELECT"]
    assert "sqlaudit" not in sent[0].sql
