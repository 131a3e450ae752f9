"""Laws 2 and 3: what objects go through between sessions, flushes and transactions is told as the witness saw it."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient, make_transient_to_detached, mapped_column
from sqlalchemy.orm.attributes import set_attribute, set_committed_value
from sqlalchemy.orm.exc import StaleDataError

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, story_of, truth_by_row, truth_of
from sqlaudit import register_hooks, track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True)
    quantity: Mapped[int | None]


async def test_several_flushes_in_one_transaction_are_one_change_each(maker: Maker) -> None:
    """Each flush tells what it wrote; all flushes of a transaction share one transaction_id."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        session.add(item)
        await session.flush()
        item.quantity = 2
        await session.flush()
        item.name = "b"
        await session.flush()
        await session.refresh(item)
        item.quantity = 3
        await session.commit()
        item.quantity = 4
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"quantity": (1, 2)}),
        ("update", {"name": ("a", "b")}),
        ("update", {"quantity": (2, 3)}),
        ("update", {"quantity": (3, 4)}),
    ]
    transactions = {change.change_id: change.transaction_id for change in await changes_of(maker, Item)}
    assert [list(transactions.values()).count(each) for each in dict.fromkeys(transactions.values())] == [4, 1]


async def test_autoflush_by_a_query_is_told(maker: Maker) -> None:
    """A flush that a query causes is told, and once."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.quantity = 2
        found = (await session.scalars(sa.select(Item).where(Item.quantity == 2))).all()
        await session.commit()

    assert len(found) == 1
    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)})]


async def test_what_is_rolled_back_is_not_told(maker: Maker) -> None:
    """A transaction that is rolled back leaves no trail; the objects' next changes have the right old values."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        item.quantity = 2
        await session.flush()
        await session.rollback()
        item.quantity = 3
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 3)})]


async def test_savepoints_that_are_rolled_back_are_not_told(maker: Maker) -> None:
    """What a savepoint did and undid isn't told; what was before and comes after it is, as one transaction."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.quantity = 2
        savepoint = await session.begin_nested()
        item.quantity = 3
        session.add(Item(name="lost"))
        await session.flush()
        await savepoint.rollback()
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)}), ("update", {"name": ("a", "b")})]
    assert len({change.transaction_id for change in await changes_of(maker, Item)}) == 2


async def test_savepoints_that_are_released_are_told(maker: Maker) -> None:
    """What nested savepoints did is told when the transaction commits."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        async with session.begin_nested():
            item.quantity = 2
            async with session.begin_nested():
                item.quantity = 3
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)}), ("update", {"quantity": (2, 3)})]


async def test_flushes_that_fail_are_not_told(maker: Maker) -> None:
    """A flush that the database refuses leaves no trail, and the session's next transaction is told."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item, Item(name="taken"))
        item.name = "taken"
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        item.quantity = 2
        await session.commit()

    assert (await story_of(maker, Item))[2:] == [("update", {"quantity": (1, 2)})]


async def test_savepoints_around_flushes_that_fail_keep_the_rest(maker: Maker) -> None:
    """A flush that fails within a savepoint takes its own changes with it, and no others."""
    await start_audit(maker, Base)

    async with maker() as session:
        item, taken = Item(name="a", quantity=1), Item(name="taken", quantity=1)
        await save(session, item, taken)
        taken.quantity = 2
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                item.name = "taken"
        item.quantity = 2
        await session.commit()

    assert (await story_of(maker, Item))[2:] == [
        ("update", {"quantity": (1, 2)}),
        ("update", {"quantity": (1, 2)}),
    ]


async def test_merge_of_a_detached_object_tells_what_differs_from_the_row(maker: Maker) -> None:
    """merge() tells the difference between the given object and the row in the database."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a", quantity=1))
    async with maker() as session:
        await session.merge(Item(id=1, name="b", quantity=1))
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b")})]


async def test_merge_of_a_new_object_tells_an_insert(maker: Maker) -> None:
    """merge() of an object that the database doesn't know tells an insert."""
    await start_audit(maker, Base)

    async with maker() as session:
        await session.merge(Item(id=5, name="a"))
        await session.commit()

    assert await story_of(maker, Item) == [
        ("insert", {"id": (None, 5), "name": (None, "a"), "quantity": (None, None)}),
    ]


async def test_merge_without_load_tells_later_changes(maker: Maker) -> None:
    """An object that was merged with load=False, and changed then, tells old and new value."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
    async with maker() as session:
        merged = await session.merge(item, load=False)
        merged.quantity = 2
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)})]


async def test_transient_copies_tell_an_insert(maker: Maker) -> None:
    """An object that make_transient() made new, and that is added without its key, tells an insert."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        session.expunge(item)
        make_transient(item)
        del item.id
        item.name = "copy"
        session.add(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("insert", {"id": (None, 2), "name": (None, "copy"), "quantity": (None, 1)})
    ]


async def test_detached_objects_that_are_attached_again_tell_their_changes(maker: Maker) -> None:
    """What was changed on a detached object is told when another session flushes it."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
    item.quantity = 2
    async with maker() as session:
        session.add(item)
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "quantity": (1, 2)})]


async def test_detached_expired_objects_that_are_attached_again_tell_their_changes(maker: Maker) -> None:
    """What was changed on a detached, expired object is told with the database's old value."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
    item.quantity = 2
    async with maker() as session:
        session.add(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)})]


async def test_objects_that_were_made_up_as_detached_tell_what_the_row_held(maker: Maker) -> None:
    """An update or delete by primary key alone, through make_transient_to_detached(), tells the row's old values."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a", quantity=1), Item(name="b", quantity=2))
    async with maker() as session:
        updated, deleted = Item(id=1), Item(id=2)
        for item in (updated, deleted):
            make_transient_to_detached(item)
        session.add_all([updated, deleted])
        updated.quantity = 3
        await session.delete(deleted)
        await session.commit()

    assert (await story_of(maker, Item))[2:] == [
        ("update", {"quantity": (1, 3)}),
        ("delete", {"id": (2, None), "name": ("b", None), "quantity": (2, None)}),
    ]


async def test_low_level_setters_are_told(maker: Maker) -> None:
    """set_attribute() is told as an assignment; set_committed_value() writes nothing, and tells nothing."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        set_attribute(item, "quantity", 2)
        set_committed_value(item, "name", "pretended")
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (1, 2)})]


async def test_objects_that_are_refreshed_tell_what_was_written(maker: Maker) -> None:
    """A pending change that refresh() takes back is neither written nor told."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        session.autoflush = False
        item.quantity = 2
        await session.refresh(item)
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b")})]


async def test_sessions_in_an_outer_transaction_are_told(maker: Maker, engine: AsyncEngine) -> None:
    """A session that joined a connection's transaction tells what it did when that transaction commits."""
    await start_audit(maker, Base)

    async with engine.connect() as connection:
        for keep in (False, True):
            transaction = await connection.begin()
            async with maker(bind=connection, join_transaction_mode="create_savepoint") as session:
                await save(session, Item(name="a"))
            await (transaction.commit() if keep else transaction.rollback())

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert"]


async def test_sessions_that_were_hooked_in_the_middle_tell_what_comes_after(maker: Maker) -> None:
    """A session that is hooked while it is in a transaction, with its objects loaded, tells exact old values."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a", quantity=1))
    async with type(session)(maker.kw["bind"]) as session:
        item = (await session.scalars(sa.select(Item))).one()
        session.expire(item, ["name"])
        item.name = "b"
        with register_hooks(session):
            item.quantity = 2
            await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "quantity": (1, 2)})]


async def test_two_objects_that_take_one_deleted_key_are_told(maker: Maker) -> None:
    """Two new objects under the key of one deleted object, which SQLAlchemy warns of, tell what the row ended as."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.delete(item)
        session.add(Item(id=1, name="b", quantity=2))
        session.add(Item(id=1, name="c", quantity=3))
        with pytest.warns(SAWarning, match="already had an identity"):
            await session.commit()

    assert len(await truth_of(maker, Item)) == 3
    values: dict[str, object] = {}
    for change in await changes_of(maker, Item):
        assert change.old_value == values.get(change.field_name)
        values[change.field_name] = change.new_value
    assert [tuple(values.values())] == await read_rows(maker, "SELECT id, name, quantity FROM item")


async def test_what_listeners_change_before_the_commit_is_told(maker: Maker) -> None:
    """What the application changes in before_commit and after_flush_postexec is told, as the same transaction."""
    await start_audit(maker, Base)

    async with maker() as session:
        item, other = Item(name="a", quantity=1), Item(name="b", quantity=1)
        await save(session, item, other)

        @event.listens_for(session.sync_session, "before_commit")
        def _(sync: Any) -> None:
            item.quantity = 2

        @event.listens_for(session.sync_session, "after_flush_postexec")
        def _(sync: Any, context: Any) -> None:
            if item.name == "x" and other.name != "y":
                other.name = "y"

        item.name = "x"
        await session.commit()

    story = await truth_by_row(maker, Item)
    await story_of(maker, Item)
    assert story[1][1:] == [("update", {"name": ("a", "x"), "quantity": (1, 2)})]
    assert story[2][1:] == [("update", {"name": ("b", "y")})]
    assert len({change.transaction_id for change in await changes_of(maker, Item)}) == 2


async def test_version_conflicts_are_not_told(maker: Maker) -> None:
    """An update or delete that finds its row changed by somebody else leaves no trail."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": version}

    await start_audit(maker, Base)
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        item = Item(name="a")
        await save(session, item)
        theirs = await other.get_one(Item, 1)
        theirs.name = "theirs"
        await other.commit()
        item.name = "mine"
        with pytest.raises(StaleDataError):
            await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "theirs"), "version": (1, 2)})]
