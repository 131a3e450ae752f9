"""Masked fields: that they change is told, what they hold never, whatever writes them."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, composite, mapped_column, relationship

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, stored_changes
from databases import Database
from sqlaudit import MASKED, track, track_table
from sqlaudit.exceptions import TrackingError

MASK = {"$masked": True}


async def _assert_withheld(maker: Maker) -> None:
    """Fail if a secret of these tests is anywhere in the trail."""
    # All but what is random, or a clock: digits come together in these by chance.
    columns = (
        "operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values"
    )
    everything = repr(await read_rows(maker, f"SELECT {columns} FROM sqlaudit_change")).lower()
    assert everything != "[]"
    assert "hush" not in everything
    assert "4711" not in everything


class Pin:
    """Two columns in one."""

    def __init__(self, code: int | None, hint: str | None) -> None:
        self.code, self.hint = code, hint

    def __composite_values__(self) -> tuple[int | None, str | None]:
        return self.code, self.hint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pin) and self.__composite_values__() == other.__composite_values__()

    def __hash__(self) -> int:
        return hash(self.__composite_values__())


def _person() -> Any:
    """Return a model with masked fields: text, a document, a composite."""

    class Base(DeclarativeBase):
        pass

    @track_table(masked_fields=["secret", "document", "pin_code", "pin_hint"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
        secret: Mapped[str | None] = mapped_column(sa.String(50))
        document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
        pin_code: Mapped[int | None]
        pin_hint: Mapped[str | None] = mapped_column(sa.String(50))
        pin: Mapped[Pin] = composite("pin_code", "pin_hint")

    return Person


_ALL = dict.fromkeys(["secret", "document", "pin_code", "pin_hint"], MASK)


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "expired"])
async def test_the_unit_of_work_withholds_masked_values(maker: Maker, in_memory: bool) -> None:
    """Inserts, updates and deletes of objects tell masked fields, NULLs and documents too, without values."""
    person_ = _person()
    await start_audit(maker, person_.metadata)

    async with maker(expire_on_commit=not in_memory) as session:
        person = person_(id=1, name="a", secret="hush", document={"hush": ["hush"]}, pin=Pin(4711, "hush"))
        await save(session, person, person_(id=2, name="b", pin=Pin(None, None)))
        person.secret = "hush 2"
        await session.commit()
        person.document = {"hush": ["hush", 2]}
        await session.commit()
        person.pin = Pin(47110, "hush")
        await session.commit()
        person.secret, person.document = None, None
        await session.commit()
        person.secret, person.name = "hush 3", "c"
        await session.commit()
        await session.delete(person)
        await session.commit()

    assert [each for each in await stored_changes(maker, "Person") if each[1] == "1"] == [
        ("insert", "1", None, {"id": 1, "name": "a", **_ALL}),
        ("update", "1", {"secret": MASK}, {"secret": MASK}),
        ("update", "1", {"document": MASK}, {"document": MASK}),
        ("update", "1", {"pin_code": MASK}, {"pin_code": MASK}),
        ("update", "1", {"secret": MASK, "document": MASK}, {"secret": MASK, "document": MASK}),
        ("update", "1", {"name": "a", "secret": MASK}, {"name": "c", "secret": MASK}),
        ("delete", "1", {"id": 1, "name": "c", **_ALL}, None),
    ]
    assert (await stored_changes(maker, "Person"))[1] == ("insert", "2", None, {"id": 2, "name": "b", **_ALL})
    await _assert_withheld(maker)
    told = [each for each in await changes_of(maker, person_, 1) if each.field_name == "secret"]
    assert [(each.old_value, each.new_value) for each in told] == [
        (None, MASKED),
        *[(MASKED, MASKED)] * 3,
        (MASKED, None),
    ]


async def test_statements_withhold_masked_values(maker: Maker) -> None:
    """Inserts in bulk, updates of all kinds and deletes tell masked fields without values."""
    person_ = _person()
    await start_audit(maker, person_.metadata)

    async with maker() as session:
        await session.execute(
            sa.insert(person_), [{"id": number, "name": f"{number}", "secret": f"hush {number}"} for number in (1, 2)]
        )
        await session.execute(sa.insert(person_).values(id=3, name="3", secret="hush", document={"hush": 1}))
        await session.run_sync(
            lambda sync: sync.bulk_insert_mappings(person_, [{"id": 4, "name": "4", "pin_code": 4711}])
        )
        await session.commit()
        await session.execute(sa.update(person_).where(person_.id == 1).values(secret="hush 5"))
        await session.execute(sa.update(person_), [{"id": 2, "secret": "hush 6", "name": "two"}])
        await session.execute(sa.update(person_).where(person_.id == 3).values(secret=sa.func.upper(person_.secret)))
        await session.run_sync(lambda sync: sync.bulk_update_mappings(person_, [{"id": 4, "pin_code": None}]))
        await session.execute(sa.update(person_).where(person_.id == 4).values(document={"hush": 7}))
        await session.commit()
        await session.execute(sa.delete(person_).where(person_.id < 4))
        await session.execute(sa.delete(person_.__table__))
        await session.commit()

    stored = await stored_changes(maker, "Person")
    assert [new for operation, _, _, new in stored if operation == "insert"] == [
        {"id": number, "name": f"{number}", **_ALL} for number in (1, 2, 3, 4)
    ]
    assert [(key, old, new) for operation, key, old, new in stored if operation == "update"] == [
        ("1", {"secret": MASK}, {"secret": MASK}),
        ("2", {"name": "2", "secret": MASK}, {"name": "two", "secret": MASK}),
        ("3", {"secret": MASK}, {"secret": MASK}),
        ("4", {"pin_code": MASK}, {"pin_code": MASK}),
        ("4", {"document": MASK}, {"document": MASK}),
    ]
    assert [old for operation, _, old, _ in stored if operation == "delete"] == [
        {"id": number, "name": name, **_ALL} for number, name in ((1, "1"), (2, "two"), (3, "3"), (4, "4"))
    ]
    await _assert_withheld(maker)


async def test_upserts_withhold_masked_values(maker: Maker, database: Database) -> None:
    """An upsert that inserts one row and updates another tells masked fields without values."""
    person_ = _person()
    await start_audit(maker, person_.metadata)

    async with maker() as session:
        await save(session, person_(id=1, name="a", secret="hush 1"), person_(id=2, name="b", secret="hush 2"))
        rows = [{"id": 1, "secret": "hush 3"}, {"id": 2, "secret": "hush 2"}, {"id": 3, "secret": "hush 4"}]
        statement: Any
        if database.kind == "mariadb":
            statement = mysql.insert(person_).values(rows)
            statement = statement.on_duplicate_key_update(secret=statement.inserted.secret)
        else:
            dialect: Any = postgresql if database.kind == "postgresql" else sqlite
            statement = dialect.insert(person_).values(rows)
            statement = statement.on_conflict_do_update(
                index_elements=["id"], set_={"secret": statement.excluded.secret}
            )
        await session.execute(statement)
        await session.commit()

    stored = (await stored_changes(maker, "Person"))[2:]
    assert sorted(stored, key=lambda change: change[1]) == [
        ("update", "1", {"secret": MASK}, {"secret": MASK}),
        ("insert", "3", None, {"id": 3, "name": None, **_ALL}),
    ]
    await _assert_withheld(maker)


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "expired"])
async def test_the_same_masked_values_tell_nothing(maker: Maker, in_memory: bool) -> None:
    """A masked field that is written with what it holds is no change, whoever writes it."""
    person_ = _person()
    await start_audit(maker, person_.metadata)

    async with maker(expire_on_commit=not in_memory) as session:
        person = person_(id=1, name="a", secret="hush", document={"hush": [1]}, pin=Pin(4711, "hush"))
        await save(session, person)
        person.secret, person.document, person.pin = "hush", {"hush": [1]}, Pin(4711, "hush")
        await session.commit()
        same = {"secret": "hush", "document": {"hush": [1]}, "pin_code": 4711}
        await session.execute(sa.update(person_).values(same))
        await session.execute(sa.update(person_), [{"id": 1, **same}])
        await session.execute(sa.update(person_).values(secret=sa.func.lower(person_.secret)))
        await session.commit()

    assert [operation for operation, *_ in await stored_changes(maker, "Person")] == ["insert"]


async def test_cascades_withhold_masked_values(maker: Maker) -> None:
    """Rows that the ORM or the database deletes, or whose key it sets to NULL, tell masked fields without values."""

    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        owned: Mapped[list["Owned"]] = relationship(cascade="all, delete-orphan", lazy="selectin")

    @track_table(masked_fields=["secret"])
    class Owned(Base):
        __tablename__ = "owned"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))
        secret: Mapped[str] = mapped_column(sa.String(50))

    @track_table(masked_fields=["secret"])
    class Ended(Base):
        __tablename__ = "ended"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))
        secret: Mapped[str] = mapped_column(sa.String(50))

    @track_table(masked_fields=["secret", "parent_id"])
    class Left(Base):
        __tablename__ = "left_alone"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id", ondelete="SET NULL"))
        secret: Mapped[str] = mapped_column(sa.String(50))

    if maker.kw["bind"].dialect.name == "sqlite":

        @sa.event.listens_for(maker.kw["bind"].sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    await start_audit(maker, Base)

    async with maker() as session:
        parent = Parent(id=1, owned=[Owned(id=1, secret="hush")])
        await save(session, parent)
        session.add_all([Ended(id=1, parent_id=1, secret="hush"), Left(id=1, parent_id=1, secret="hush")])
        await session.commit()
        await session.refresh(parent)
        await session.delete(parent)
        await session.commit()

    assert (await stored_changes(maker, "Owned"))[1:] == [
        ("delete", "1", {"id": 1, "parent_id": 1, "secret": MASK}, None)
    ]
    assert (await stored_changes(maker, "Ended"))[1:] == [
        ("delete", "1", {"id": 1, "parent_id": 1, "secret": MASK}, None)
    ]
    assert (await stored_changes(maker, "Left"))[1:] == [("update", "1", {"parent_id": MASK}, {"parent_id": MASK})]
    await _assert_withheld(maker)


async def test_tables_of_core_withhold_masked_values(maker: Maker) -> None:
    """The masked columns of a Core table that is tracked are withheld."""
    metadata = sa.MetaData()
    table = sa.Table(
        "plain",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", sa.String(50)),
    )
    track(table, masked_fields=["secret"])
    await start_audit(maker, metadata)
    async with maker() as session:
        await session.execute(sa.insert(table).values(id=1, secret="hush"))
        await session.execute(sa.update(table).values(secret="hush 2"))
        await session.execute(sa.delete(table))
        await session.commit()

    assert await stored_changes(maker, "plain") == [
        ("insert", "1", None, {"id": 1, "secret": MASK}),
        ("update", "1", {"secret": MASK}, {"secret": MASK}),
        ("delete", "1", {"id": 1, "secret": MASK}, None),
    ]
    await _assert_withheld(maker)


async def test_masking_a_field_tracks_it(maker: Maker) -> None:
    """A masked field that isn't among the tracked ones is told as changed."""

    class Base(DeclarativeBase):
        pass

    @track_table(tracked_fields=["name"], masked_fields=["secret"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        other: Mapped[str]
        secret: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        person = Person(id=1, name="a", other="b", secret="hush")
        await save(session, person)
        person.secret = "hush 2"
        person.other = "c"
        await session.commit()

    assert await stored_changes(maker, "Person") == [
        ("insert", "1", None, {"id": 1, "name": "a", "secret": MASK}),
        ("update", "1", {"secret": MASK}, {"secret": MASK}),
    ]


@pytest.mark.parametrize(
    "declared", [{"masked_fields": ["id"]}, {"masked_fields": ["name"], "resource_id_field": "name"}]
)
def test_keys_cannot_be_masked(declared: dict[str, Any]) -> None:
    """A key, which every change shows, is refused among the masked fields."""

    class Base(DeclarativeBase):
        pass

    @track_table(**declared)
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    with pytest.raises(TrackingError, match="masked_fields"):
        Base.registry.configure()
    Base.registry.dispose()
