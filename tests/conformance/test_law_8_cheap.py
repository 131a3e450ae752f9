"""Law 8: one audit INSERT per flush, no query when nothing tracked changed, old values read in batches."""

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import defer, selectinload

from conformance_models import Account, Entry, Maker, Page, Topic, Truck, begin_auditing
from observing import Sent, sent_statements, stored_rows, stored_trail
from sqlaudit import audit_context

Step = Callable[[AsyncSession], Awaitable[None]]


def audit_inserts(sent: list[Sent]) -> list[Sent]:
    """Return the INSERTs of the trail; nothing else of what was sent concerns it."""
    concerning = [each for each in sent if each.concerns_trail]
    assert all(each.sql.startswith("INSERT INTO sqlaudit_change") for each in concerning)
    return concerning


async def fill(maker: Maker, count: int) -> None:
    """Store accounts 1 to *count*, each with a note."""
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"owner {number}", note="old") for number in range(1, count + 1)])
        await session.commit()


async def added_by_hooks(engine: AsyncEngine, maker: Maker, prepare: Step, change: Step) -> list[str]:
    """
    Return the first words of what hooks add to the statements of *change*, in one flush, after *prepare*.

    Runs both twice, without hooks and with them; the first run is rolled back.
    """
    counts = []
    for each in (Maker(engine), maker):
        async with each() as session:
            await prepare(session)
            await change(session)
            with sent_statements(engine) as sent:
                await session.flush()
            counts.append(Counter(one.sql for one in sent))
            await session.rollback()
    without, with_hooks = counts
    assert without - with_hooks == Counter()
    return sorted(sql.split(maxsplit=1)[0] for sql in (with_hooks - without).elements())


# --- one INSERT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 100])
async def test_one_audit_insert_for_the_inserts_of_a_flush(engine: AsyncEngine, maker: Maker, count: int) -> None:
    """However many rows a flush inserts, their trail is one INSERT."""
    await begin_auditing(engine, maker)

    with sent_statements(engine) as sent:
        await fill(maker, count)

    assert len(audit_inserts(sent)) == 1
    assert len(await stored_trail(engine)) == count


@pytest.mark.parametrize("count", [1, 100])
async def test_one_audit_insert_and_no_select_for_updates_of_loaded_objects(
    engine: AsyncEngine, maker: Maker, count: int
) -> None:
    """Updates of loaded objects add one INSERT to the flush, and nothing else."""
    await begin_auditing(engine, maker)
    await fill(maker, count)

    async with maker() as session:
        for account in await session.scalars(select(Account)):
            account.note = "new"
        with sent_statements(engine) as sent:
            await session.commit()

    assert Counter(each.verb for each in sent) == {"UPDATE": 1, "INSERT": 1}
    assert len(audit_inserts(sent)) == 1
    assert [change.operation for change in await stored_trail(engine)].count("update") == count


@pytest.mark.parametrize("count", [1, 100])
async def test_one_audit_insert_and_no_select_for_deletes_of_loaded_objects(
    engine: AsyncEngine, maker: Maker, count: int
) -> None:
    """Deletes of loaded objects add one INSERT to the flush, and nothing else."""
    await begin_auditing(engine, maker)
    await fill(maker, count)

    async with maker() as session:
        loaded = select(Account).options(selectinload(Account.entries), selectinload(Account.topics))
        for account in (await session.scalars(loaded)).all():
            await session.delete(account)
        with sent_statements(engine) as sent:
            await session.commit()

    assert Counter(each.verb for each in sent) == {"DELETE": 1, "INSERT": 1}
    assert len(audit_inserts(sent)) == 1
    assert [change.operation for change in await stored_trail(engine)].count("delete") == count


async def test_one_audit_insert_for_all_tables_and_operations_of_a_flush(engine: AsyncEngine, maker: Maker) -> None:
    """Inserts, updates and deletes in several tables are told by one INSERT if one flush makes them."""
    await begin_auditing(engine, maker)
    await fill(maker, 3)

    async with maker() as session:
        loaded = select(Account).options(selectinload(Account.entries), selectinload(Account.topics))
        first, second, _ = await session.scalars(loaded.order_by(Account.id))
        first.note = "new"
        await session.delete(second)
        session.add_all([Account(id=9, owner="new"), Page(id=1, title="a"), Truck(id=1, plate="AB", load=1)])
        with sent_statements(engine) as sent:
            await session.commit()

    assert len(audit_inserts(sent)) == 1
    assert len(await stored_trail(engine)) == 3 + 6


async def test_one_audit_insert_per_flush(engine: AsyncEngine, maker: Maker) -> None:
    """Three flushes of one transaction send three INSERTs of the trail; none is sent at the commit."""
    await begin_auditing(engine, maker)

    with sent_statements(engine) as sent:
        async with maker() as session:
            for number in range(1, 4):
                session.add(Account(id=number, owner=f"owner {number}"))
                await session.flush()
            before_commit = len(audit_inserts(sent))
            await session.commit()

    assert before_commit == 3
    assert len(audit_inserts(sent)) == 3


async def test_trail_is_not_read_to_be_written(engine: AsyncEngine, maker: Maker) -> None:
    """The same change costs the same statements on an empty trail and on a long one; the trail isn't asked."""
    await begin_auditing(engine, maker)
    await fill(maker, 1)
    costs = []

    async with maker(expire_on_commit=False) as session:
        account = await session.get_one(Account, 1)
        for number in range(50):
            account.note = f"note {number}"
            with sent_statements(engine) as sent, audit_context(user_id=number):
                await session.commit()
            audit_inserts(sent)
            costs.append([each.sql for each in sent])

    assert costs == [costs[0]] * 50
    assert len(await stored_trail(engine)) == 51


# --- nothing tracked changed -----------------------------------------------------------------------------------------


async def test_untracked_field_costs_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """An UPDATE of a field that isn't tracked is sent as if there were no hooks."""
    await begin_auditing(engine, maker)
    await fill(maker, 3)

    async with maker() as session:
        for account in await session.scalars(select(Account)):
            account.visits += 1
        with sent_statements(engine) as sent:
            await session.commit()

    assert [each.verb for each in sent] == ["UPDATE"]
    assert await stored_rows(engine, "visits", "account") == [(1,), (1,), (1,)]
    assert len(await stored_trail(engine)) == 3


async def test_untracked_field_of_expired_objects_costs_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """An UPDATE of a field that isn't tracked adds nothing to the flush of expired objects either."""
    await begin_auditing(engine, maker)
    await fill(maker, 20)
    accounts: list[Account] = []

    async def load(session: AsyncSession) -> None:
        accounts[:] = await session.scalars(select(Account))
        session.expire_all()

    async def visit(session: AsyncSession) -> None:
        for account in accounts:
            account.visits = 3

    added = await added_by_hooks(engine, maker, load, visit)

    assert added == []


async def test_same_value_costs_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """A loaded object that is given the values it has sends nothing at all."""
    await begin_auditing(engine, maker)
    await fill(maker, 3)

    async with maker() as session:
        for account in await session.scalars(select(Account)):
            account.owner, account.note, account.balance = str(account.owner), "old", 0
        with sent_statements(engine) as sent:
            await session.commit()

    assert sent == []
    assert len(await stored_trail(engine)) == 3


async def test_value_that_was_put_back_costs_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """A value that is changed and changed back before the flush sends nothing."""
    await begin_auditing(engine, maker)
    await fill(maker, 1)

    async with maker() as session:
        account = await session.get_one(Account, 1)
        account.note = "new"
        account.note = "old"
        with sent_statements(engine) as sent:
            await session.commit()

    assert sent == []
    assert len(await stored_trail(engine)) == 1


async def test_relationships_cost_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """Untracked children and links that come and go add nothing, although their parent is dirty."""
    await begin_auditing(engine, maker)
    await fill(maker, 2)
    async with maker() as session:
        session.add(Topic(id=1, name="a"))
        session.add(Entry(id=1, line="a", account_id=1))
        await session.commit()

    async with maker() as session:
        loaded = select(Account).options(selectinload(Account.entries), selectinload(Account.topics))
        first, second = await session.scalars(loaded.order_by(Account.id))
        first.topics.append(await session.get_one(Topic, 1))
        second.entries.append(first.entries.pop())
        second.entries.append(Entry(id=2, line="b"))
        dirty = set(session.dirty)
        with sent_statements(engine) as sent:
            await session.commit()

    assert {first, second} <= dirty
    assert sorted(" ".join(each.sql.split()[:3]) for each in sent) == [
        "INSERT INTO account_topic",
        "INSERT INTO entry",
        "UPDATE entry SET",
    ]
    assert len(await stored_trail(engine)) == 2


async def test_untracked_models_cost_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """Models that aren't tracked are inserted, updated, bulk updated and deleted as if there were no hooks."""
    await begin_auditing(engine, maker)

    with sent_statements(engine) as sent:
        async with maker() as session:
            entry = Entry(id=1, line="a")
            session.add(entry)
            await session.flush()
            entry.line = "b"
            await session.flush()
            await session.execute(update(Entry).values(line="c"))
            await session.delete(entry)
            await session.commit()

    assert [each.verb for each in sent] == ["INSERT", "UPDATE", "UPDATE", "DELETE"]
    assert await stored_trail(engine) == []


async def test_flush_of_nothing_costs_nothing(engine: AsyncEngine, maker: Maker) -> None:
    """A flush and a commit of an unchanged session send nothing."""
    await begin_auditing(engine, maker)
    await fill(maker, 1)

    async with maker() as session:
        await session.get_one(Account, 1)
        with sent_statements(engine) as sent:
            await session.flush()
            await session.commit()

    assert sent == []


# --- old and new values that nobody has ------------------------------------------------------------------------------


async def test_hundred_expired_objects_cost_one_select(engine: AsyncEngine, maker: Maker) -> None:
    """The old values of a hundred expired objects are read by one SELECT."""
    await begin_auditing(engine, maker)
    await fill(maker, 100)
    accounts: list[Account] = []

    async def load(session: AsyncSession) -> None:
        accounts[:] = await session.scalars(select(Account))
        session.expire_all()

    async def change(session: AsyncSession) -> None:
        for account in accounts:
            account.note = "new"

    added = await added_by_hooks(engine, maker, load, change)

    assert added == ["INSERT", "SELECT"]


async def test_hundred_deferred_columns_cost_one_select(engine: AsyncEngine, maker: Maker) -> None:
    """The old values of a hundred deferred columns are read by one SELECT."""
    await begin_auditing(engine, maker)
    await fill(maker, 100)
    accounts: list[Account] = []

    async def load(session: AsyncSession) -> None:
        accounts[:] = await session.scalars(select(Account).options(defer(Account.note)))

    async def change(session: AsyncSession) -> None:
        for account in accounts:
            account.note = "new"

    added = await added_by_hooks(engine, maker, load, change)

    assert added == ["INSERT", "SELECT"]


async def test_loaded_and_expired_objects_share_one_select(engine: AsyncEngine, maker: Maker) -> None:
    """Among loaded objects the expired ones, changed and deleted, are read by one SELECT for their table."""
    await begin_auditing(engine, maker)
    await fill(maker, 30)
    accounts: list[Account] = []

    async def load(session: AsyncSession) -> None:
        loaded = select(Account).options(selectinload(Account.entries), selectinload(Account.topics))
        accounts[:] = await session.scalars(loaded)
        for account in accounts[::2]:
            session.expire(account, ["note", "balance"])

    async def change(session: AsyncSession) -> None:
        for account in accounts[:20]:
            account.note = "new"
        for account in accounts[20:]:
            await session.delete(account)

    added = await added_by_hooks(engine, maker, load, change)

    assert added == ["INSERT", "SELECT"]


@pytest.mark.parametrize("form", ["deferred", "expired"])
async def test_deleted_expired_objects_cost_one_select_per_table(engine: AsyncEngine, maker: Maker, form: str) -> None:
    """Rows in two tables that nobody has loaded cost two SELECTs when they are deleted, not two for each object."""
    await begin_auditing(engine, maker)
    async with maker() as session:
        session.add_all([Truck(id=number, plate=f"plate {number}", load=number) for number in range(1, 101)])
        await session.commit()
    trucks: list[Truck] = []

    async def load(session: AsyncSession) -> None:
        trucks[:] = await session.scalars(select(Truck).options(defer(Truck.plate), defer(Truck.load)))
        if form == "expired":
            session.expire_all()

    async def delete_all(session: AsyncSession) -> None:
        for truck in trucks:
            await session.delete(truck)

    added = await added_by_hooks(engine, maker, load, delete_all)

    # Expired objects SQLAlchemy itself loads before it deletes them: nothing remains to be read.
    assert added == {"deferred": ["INSERT", "SELECT", "SELECT"], "expired": ["INSERT"]}[form]


async def test_hundred_sql_expressions_cost_two_selects(engine: AsyncEngine, maker: Maker) -> None:
    """What a hundred SQL expressions made of expired values is read by one SELECT before and one after."""
    await begin_auditing(engine, maker)
    await fill(maker, 100)
    accounts: list[Account] = []

    async def load(session: AsyncSession) -> None:
        accounts[:] = await session.scalars(select(Account).options(defer(Account.balance)))

    async def change(session: AsyncSession) -> None:
        for account in accounts:
            account.balance = Account.balance + 1

    added = await added_by_hooks(engine, maker, load, change)

    assert added == ["INSERT", "SELECT", "SELECT"]


async def test_callback_is_asked_once_per_flush(engine: AsyncEngine, maker: Maker) -> None:
    """The callback, which may cost a query, is asked once for all the changes of a flush."""
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=ask)

    await fill(maker, 100)

    assert len(asked) == 1


async def test_callback_is_asked_once_per_flush_with_require_user(engine: AsyncEngine, maker: Maker) -> None:
    """The callback is asked once for all the changes of a flush, also when it is asked before anything is sent."""
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=ask, require_user=True)

    await fill(maker, 3)

    assert len(asked) == 1


async def test_callback_is_not_asked_when_nothing_tracked_changed(engine: AsyncEngine, maker: Maker) -> None:
    """Without a change to attribute nobody is asked for a user."""
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=ask)
    await fill(maker, 1)
    asked.clear()

    async with maker() as session:
        account = await session.get_one(Account, 1)
        account.visits += 1
        session.add(Entry(id=1, line="a"))
        await session.commit()

    assert asked == []
