"""Rows that there were before auditing began are recorded, once, whatever the application does meanwhile."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from databases import Database
from observing import StoredChange, sent_statements, stored_rows, stored_trail
from sqlaudit import (
    SQLAuditConfig,
    audit_context,
    create_baseline,
    create_baseline_sync,
    get_changes,
    get_config,
    register_hooks,
    set_config,
    track,
    track_table,
)
from sqlaudit.exceptions import ActorRequiredError, CaptureError, RetrievalError, UntrackedError

Maker = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase):
    pass


plant_bed = Table(
    "plant_bed",
    Base.metadata,
    Column("plant_id", ForeignKey("plant.id"), primary_key=True),
    Column("bed_name", ForeignKey("bed.name"), primary_key=True),
)


class Bed(Base):
    """Not tracked."""

    __tablename__ = "bed"

    name: Mapped[str] = mapped_column(primary_key=True)


@track_table(["name", "height", "document", "secret", "beds"], masked_fields=["secret"], table_label="GardenPlant")
class Plant(Base):
    __tablename__ = "plant"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plant"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    height: Mapped[int] = mapped_column(default=0)
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    secret: Mapped[str | None]
    beds: Mapped[list[Bed]] = relationship(secondary=plant_bed)


@track_table(table_label="GardenTree")
class Tree(Plant):
    __tablename__ = "tree"
    __mapper_args__ = {"polymorphic_identity": "tree"}

    id: Mapped[int] = mapped_column(ForeignKey("plant.id"), primary_key=True)
    rings: Mapped[int | None]


@track_table(table_label="GardenLabel", resource_id_field="code", user_id_field="edited_by")
class Label(Base):
    """Has a key of two columns, is known by another, and names its editor itself."""

    __tablename__ = "garden_label"

    row: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    edited_by: Mapped[str | None]


@pytest.fixture(name="garden")
async def _garden(engine: AsyncEngine, maker: Maker) -> Maker:
    """Give sessions that are audited from now on; nothing is in the tables yet."""
    set_config(SQLAuditConfig(session_factory=maker))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    register_hooks(maker)
    return maker


async def plant(engine: AsyncEngine, keys: Sequence[int]) -> None:
    """Insert plants without a trail."""
    rows = [{"id": key, "kind": "plant", "name": f"p{key}", "height": key, "document": {"n": key}} for key in keys]
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Plant), rows)


def replayed(trail: Sequence[StoredChange], label: str) -> dict[str, dict[str, Any]]:
    """Return the rows that the trail tells of, from their beginnings on; fail where an old value isn't as it was."""
    rows: dict[str, dict[str, Any]] = {}
    for change in trail:
        if change.resource_type != label:
            continue
        if change.operation in ("insert", "baseline"):
            rows[change.resource_id] = dict(change.new_values or {})
        elif change.resource_id in rows:
            row = rows[change.resource_id]
            assert {key: row[key] for key in change.old_values or {}} == change.old_values
            row.update(change.new_values or {})
            if change.operation == "delete":
                del rows[change.resource_id]
    return rows


async def test_rows_without_a_trail_get_a_baseline(engine: AsyncEngine, garden: Maker) -> None:
    """Each row is recorded as it is, in batches, with who and why; progress is told, and the number returned."""
    await plant(engine, range(1, 8))
    told: list[int] = []

    with audit_context(user_id="me", reason="we begin"):
        written = await create_baseline(Plant, batch_size=3, progress=told.append)

    trail = await stored_trail(engine)
    assert written == 7
    assert told == [3, 6, 7]
    assert [change.what for change in trail] == [("baseline", "GardenPlant", str(key)) for key in range(1, 8)]
    assert {(change.changed_by, change.reason) for change in trail} == {("me", "we begin")}
    assert [change.old_values for change in trail] == [None] * 7
    assert [change.new_values for change in trail] == [
        {
            "id": key,
            "kind": "plant",
            "name": f"p{key}",
            "height": key,
            "document": {"n": key},
            "secret": {"$masked": True},
        }
        for key in range(1, 8)
    ]
    assert Counter(Counter(change.transaction_id for change in trail).values()) == {3: 2, 1: 1}
    changes = await get_changes(Plant, operations="baseline", resource_ids=5)
    assert changes[0].fields["name"] == (None, "p5")


async def test_a_baseline_is_written_once(engine: AsyncEngine, garden: Maker) -> None:
    """Doing it again records what has come in the meantime without a trail, and nothing else."""
    await plant(engine, range(1, 6))
    first = await create_baseline(Plant, batch_size=2)
    await plant(engine, [10, 11])
    async with garden() as session:
        session.add(Plant(id=20, name="audited"))
        await session.commit()

    second = await create_baseline(Plant, batch_size=2)
    third = await create_baseline(Plant, batch_size=2)

    trail = await stored_trail(engine)
    assert (first, second, third) == (5, 2, 0)
    assert Counter(change.what for change in trail) == {
        **{("baseline", "GardenPlant", str(key)): 1 for key in (1, 2, 3, 4, 5, 10, 11)},
        ("insert", "GardenPlant", "20"): 1,
    }


async def test_an_interrupted_baseline_goes_on(engine: AsyncEngine, garden: Maker) -> None:
    """What was committed before an interruption stays, and the next run does the rest."""
    await plant(engine, range(1, 10))

    def stop(written: int) -> None:
        if written >= 4:
            raise KeyError(written)

    with pytest.raises(KeyError):
        await create_baseline(Plant, batch_size=2, progress=stop)
    before = len(await stored_trail(engine))
    rest = await create_baseline(Plant, batch_size=2)

    assert (before, rest) == (4, 5)
    assert Counter(change.resource_id for change in await stored_trail(engine)) == dict.fromkeys(
        [str(key) for key in range(1, 10)], 1
    )


async def test_a_row_with_a_past_but_no_beginning_gets_one(engine: AsyncEngine, garden: Maker) -> None:
    """Updates alone are no beginning, and a delete ends what was before: such rows are recorded as they are now."""
    await plant(engine, [1, 2, 3])
    async with garden() as session:
        updated, deleted = await session.get_one(Plant, 1), await session.get_one(Plant, 2)
        updated.name = "new"
        session.add(Plant(id=4, name="inserted"))
        await session.delete(deleted)
        await session.commit()
        await session.delete(await session.get_one(Plant, 4))
        await session.commit()
    await plant(engine, [2, 4])

    await create_baseline(Plant)

    by_row: dict[str, list[str]] = {}
    for change in await stored_trail(engine):
        by_row.setdefault(change.resource_id, []).append(change.operation)
    assert by_row == {
        "1": ["update", "baseline"],
        "2": ["delete", "baseline"],
        "3": ["baseline"],
        "4": ["insert", "delete", "baseline"],
    }
    assert (await get_changes(Plant, resource_ids=1, operations="baseline"))[0].fields["name"].new == "new"


async def test_every_table_of_a_model_is_recorded(engine: AsyncEngine, garden: Maker) -> None:
    """Rows of subclasses and of the secondary tables of tracked relationships come, too."""
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Plant), [{"id": 1, "kind": "tree", "name": "oak"}])
        await connection.execute(sa.insert(Tree), [{"id": 1, "rings": 5}])
        await connection.execute(sa.insert(Bed), [{"name": "a"}, {"name": "b"}])
        await connection.execute(
            plant_bed.insert(), [{"plant_id": 1, "bed_name": "a"}, {"plant_id": 1, "bed_name": "b"}]
        )

    written = await create_baseline(Plant, batch_size=1)

    assert written == 4
    assert Counter(change.what for change in await stored_trail(engine)) == {
        ("baseline", "GardenPlant", "1"): 1,
        ("baseline", "GardenTree", "1"): 1,
        ("baseline", "plant_bed", '[1,"a"]'): 1,
        ("baseline", "plant_bed", '[1,"b"]'): 1,
    }


async def test_rows_are_known_by_their_resource_id(engine: AsyncEngine, garden: Maker) -> None:
    """A key of several columns is walked through in order; the trail knows the rows by the field that was named."""
    keys = [(row, place) for row in (2, 1, 3) for place in ("b", "a", "c")]
    async with engine.begin() as connection:
        await connection.execute(
            sa.insert(Label),
            [{"row": row, "place": place, "code": f"{place}-{row}", "edited_by": f"e{row}"} for row, place in keys],
        )

    written = [await create_baseline(Label, batch_size=2), await create_baseline(Label, batch_size=2)]

    trail = await stored_trail(engine)
    assert written == [9, 0]
    assert [change.resource_id for change in trail] == [f"{place}-{row}" for row, place in sorted(keys)]
    assert [change.changed_by for change in trail] == [f"e{row}" for row, _ in sorted(keys)]


async def test_a_baseline_waits_for_whoever_is_writing(engine: AsyncEngine, garden: Maker) -> None:
    """A row that another transaction has changed is recorded when that is over, as it was left."""
    await plant(engine, [1, 2, 3])
    async with garden() as other:
        changed, deleted = await other.get_one(Plant, 1), await other.get_one(Plant, 2)
        changed.name = "changed"
        await other.delete(deleted)
        await other.flush()

        baseline = asyncio.ensure_future(create_baseline(Plant))
        await asyncio.sleep(0.3)
        waiting = not baseline.done()
        await other.commit()

    assert waiting
    assert await baseline == 2
    told = [(*change.what, change.new_values and change.new_values["name"]) for change in await stored_trail(engine)]
    assert Counter(told) == Counter(
        [
            ("update", "GardenPlant", "1", "changed"),
            ("delete", "GardenPlant", "2", None),
            ("baseline", "GardenPlant", "1", "changed"),
            ("baseline", "GardenPlant", "3", "p3"),
        ]
    )
    assert told.index(("update", "GardenPlant", "1", "changed")) < told.index(
        ("baseline", "GardenPlant", "1", "changed")
    )


async def test_a_baseline_sees_what_it_has_waited_for(database: Database, engine: AsyncEngine, garden: Maker) -> None:
    """An engine whose transactions see what there was at their beginning makes no difference."""
    await plant(engine, [1, 2])
    level = "REPEATABLE READ" if database.kind == "postgresql" else "SERIALIZABLE"
    strict = database.make_async_engine(isolation_level=level)
    async with garden() as other, AsyncSession(strict) as session:
        (await other.get_one(Plant, 1)).name = "changed"
        await other.flush()

        baseline = asyncio.ensure_future(create_baseline(Plant, session=session))
        await asyncio.sleep(0.3)
        await other.commit()
        written = await baseline

    await strict.dispose()
    assert written == 2
    assert replayed(await stored_trail(engine), "GardenPlant")["1"]["name"] == "changed"


async def retried(work: Callable[[], Awaitable[Any]]) -> None:
    """Do *work* again while SQLite's lock is another's, as its applications have to."""
    while True:
        try:
            await work()
        except OperationalError as error:
            if "locked" not in str(error):
                raise
            await asyncio.sleep(0.01)
        else:
            return


async def test_a_baseline_is_right_while_the_application_writes(engine: AsyncEngine, garden: Maker) -> None:
    """Rows are updated, deleted and inserted all the while: replaying the trail gives the table."""
    await plant(engine, range(1, 61))
    chance = random.Random(1)
    numbers = itertools.count(100)

    async def write() -> None:
        async with garden(autoflush=False) as session:
            kind, key, number = chance.random(), chance.randrange(1, 61), next(numbers)
            if kind < 0.1:
                session.add(Plant(id=number, name="while"))
            else:
                found = await session.get(Plant, key, with_for_update=True)
                if found is not None and kind < 0.2:
                    await session.delete(found)
                elif found is not None:
                    found.height = number
                    found.document = {"n": number}
            await session.commit()

    async def application() -> None:
        for _ in range(25):
            await retried(write)

    async def baseline() -> None:
        await retried(lambda: create_baseline(Plant, batch_size=4))

    await asyncio.gather(application(), baseline(), application(), baseline())

    trail = await stored_trail(engine)
    rows = replayed(trail, "GardenPlant")
    table = await stored_rows(engine, "id, name, height", "plant")
    assert sorted((row["id"], row["name"], row["height"]) for row in rows.values()) == table
    beginnings = Counter(change.resource_id for change in trail if change.operation == "baseline")
    assert set(beginnings.values()) == {1}


async def test_two_baselines_at_once_record_each_row_once(engine: AsyncEngine, garden: Maker) -> None:
    """Whichever comes first to a row records it, and the other sees that."""
    await plant(engine, range(1, 31))

    written = await asyncio.gather(*(create_baseline(Plant, batch_size=size) for size in (3, 5, 7)))

    assert sum(written) == 30
    assert len(await stored_trail(engine)) == 30


async def test_a_baseline_needs_a_user_where_changes_do(engine: AsyncEngine, garden: Maker) -> None:
    """With require_user, an anonymous baseline is refused, and nothing is written."""
    await plant(engine, [1])
    set_config(SQLAuditConfig(session_factory=garden, require_user=True))

    with pytest.raises(ActorRequiredError):
        await create_baseline(Plant)
    before = await stored_trail(engine)
    with audit_context(user_id=1):
        await create_baseline(Plant)

    assert before == []
    assert [change.changed_by for change in await stored_trail(engine)] == ["1"]


async def test_rows_that_have_a_beginning_are_not_locked(engine: AsyncEngine, garden: Maker) -> None:
    """Running it again sends no write and no locking read."""
    await plant(engine, range(1, 4))
    await create_baseline(Plant)

    with sent_statements(engine) as sent:
        await create_baseline(Plant)

    assert {each.verb for each in sent} == {"SELECT"}
    assert not [each for each in sent if "FOR " in each.sql]


async def test_a_session_that_is_given_is_used(engine: AsyncEngine, garden: Maker) -> None:
    """A session is written with, and left open, without a transaction; one that is in a transaction is refused."""
    await plant(engine, [1])
    async with garden() as session:
        written = await create_baseline(Plant, session=session)
        left_in_transaction = session.in_transaction()
        await session.get(Plant, 1)

        with pytest.raises(CaptureError, match="commit or roll back first"):
            await create_baseline(Plant, session=session)

    assert written == 1
    assert not left_in_transaction


def test_a_plain_session_needs_no_event_loop(database: Database) -> None:
    """The synchronous twin, and the plain name given a Session, return the number."""
    engine = database.make_engine()
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Label), [{"row": 1, "place": "a", "code": "x"}])
    set_config(SQLAuditConfig(session_factory=lambda: Session(engine)))

    with Session(engine) as session:
        first = create_baseline(Label, session=session)
        second = create_baseline_sync(Label, session=session)
    third = create_baseline_sync(Label)
    engine.dispose()

    assert (first, second, third) == (1, 0, 0)


async def test_arguments_that_make_no_sense_are_refused(garden: Maker) -> None:
    """The error names the argument, and nothing is read."""
    with pytest.raises(RetrievalError, match="batch_size is 0"):
        create_baseline(Plant, batch_size=0)
    with pytest.raises(RetrievalError, match="progress is a int"):
        create_baseline(Plant, progress=5)  # type: ignore[call-overload]
    with pytest.raises(UntrackedError, match="Bed is not tracked"):
        create_baseline(Bed)
    with pytest.raises(RetrievalError, match="_sync"):
        create_baseline_sync(Plant)


async def test_a_connection_that_commits_by_itself_is_not_used(database: Database) -> None:
    """A baseline and the lock of its row are one transaction, whatever the engine's isolation level is."""
    engine = database.make_async_engine(isolation_level="AUTOCOMMIT")
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig(session_factory=maker))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await plant(engine, [1])

    if database.kind == "sqlite":
        with pytest.raises(CaptureError, match="AUTOCOMMIT"):
            await create_baseline(Plant)
    else:
        with sent_statements(engine) as sent:
            await create_baseline(Plant)
        assert any("FOR NO KEY UPDATE" in each.sql or "FOR UPDATE" in each.sql for each in sent)
    await engine.dispose()
    assert get_config().session_factory is maker


async def test_a_key_that_is_null_is_an_error(engine: AsyncEngine, maker: Maker) -> None:
    """SQLite lets a key be NULL: such a row isn't left out in silence. Elsewhere there is none."""
    metadata = sa.MetaData()
    odd = track(Table("odd", metadata, Column("name", sa.String(5), primary_key=True), Column("x", sa.Integer)))
    set_config(SQLAuditConfig(session_factory=maker))
    async with engine.begin() as connection:
        await connection.run_sync(get_config().trail.create)
        is_sqlite = connection.dialect.name == "sqlite"
        constraint = "" if is_sqlite else "PRIMARY KEY"
        await connection.execute(sa.text(f"CREATE TABLE odd (name VARCHAR(5) {constraint}, x INTEGER)"))
        await connection.execute(sa.text(f"INSERT INTO odd VALUES ({'NULL' if is_sqlite else '1'}, 1)"))

    if is_sqlite:
        with pytest.raises(CaptureError, match="NULL in its primary key"):
            await create_baseline(odd)
    else:
        assert await create_baseline(odd) == 1
