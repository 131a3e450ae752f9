"""Columns and tables get other names, other types, come and go: what is stored stays, and is read all the same."""

import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from conformance_setup import Maker, save, stored_changes
from sqlaudit import (
    SQLAuditConfig,
    count_changes,
    count_changes_by,
    create_baseline,
    get_changes,
    get_resource_changes,
    register_hooks,
    set_config,
    track,
    track_table,
)
from sqlaudit.exceptions import RestoreError, TrackingError, UnknownFieldError
from sqlaudit.tables import change_table
from sqlaudit.timetravel import diff_resource, get_resource_snapshot, get_snapshots, load_as_of, restore_resource
from sqlaudit.tracking import tracking_of


async def in_year_one(maker: Maker, engine: AsyncEngine) -> list[int]:
    """Create and change a customer with the model of the first year; return the ids of the changes."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Client(Base):
        __tablename__ = "client"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        fullname: Mapped[str]
        age: Mapped[str]
        dropped: Mapped[str | None]

    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with maker(expire_on_commit=False) as session:
        client = Client(id=1, kind="person", fullname="Jon", age="42", dropped="gone")
        await save(session, client)
        client.fullname = "Joan"
        await session.commit()
        client.age = "old"
        await session.commit()
    return await ids(maker)


async def ids(maker: Maker) -> list[int]:
    """Return the ids of all changes, by plain SQL."""
    async with maker() as session:
        return list((await session.execute(sa.text("SELECT id FROM sqlaudit_change ORDER BY id"))).scalars())


async def insert_in_year_one(engine: AsyncEngine, key: int, values: dict[str, Any]) -> None:
    """Write an insert into the trail as the first year did, by plain SQL."""
    transaction = uuid.UUID(int=key)
    text = str(transaction) if engine.dialect.name == "postgresql" else transaction.hex
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO sqlaudit_change (transaction_id, recorded_at, operation, resource_type, resource_id, "
            f"new_values) VALUES ('{text}', CURRENT_TIMESTAMP, 'insert', 'Client', '{key}', '{json.dumps(values)}')"
        )


async def to_year_two(engine: AsyncEngine) -> Any:
    """Migrate the tables, and return the model of the second year."""

    class Base(DeclarativeBase):
        pass

    @track_table(renamed_fields={"fullname": "name", "kind": "sort"}, former_labels=["Client"])
    class Customer(Base):
        __tablename__ = "customer"
        __mapper_args__ = {"polymorphic_on": "sort", "polymorphic_identity": "person"}
        id: Mapped[int] = mapped_column(primary_key=True)
        sort: Mapped[str]
        name: Mapped[str] = mapped_column("customer_name")
        age: Mapped[int]
        added: Mapped[Decimal | None] = mapped_column(sa.Numeric(5, 2))

    class Company(Customer):
        __mapper_args__ = {"polymorphic_identity": "company"}

    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE client"))
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            sa.text("INSERT INTO customer (id, sort, customer_name, age) VALUES (1, 'person', 'Joan', 0)")
        )
    return Customer, Company


async def test_older_changes_are_read_under_the_names_of_today(maker: Maker, engine: AsyncEngine) -> None:
    """Renamed columns and tables, also in filters; what is stored isn't rewritten."""
    await in_year_one(maker, engine)
    before = await stored_changes(maker, "Client")
    customer, company = await to_year_two(engine)

    async with maker(expire_on_commit=False) as session:
        (await session.get_one(customer, 1)).name = "Jane"
        await session.commit()
        names = await get_resource_changes(customer, 1, session, "name", sort_direction="asc")
        every = await get_resource_changes(customer, 1, session)
        of_company = await get_resource_changes(company, session=session)

    assert [(each.old_value, each.new_value) for each in names] == [(None, "Jon"), ("Jon", "Joan"), ("Joan", "Jane")]
    assert {each.resource_type for each in every} == {"Customer"}
    assert {each.field_name for each in every} == {"id", "sort", "name", "age", "dropped"}
    assert of_company == []
    assert await stored_changes(maker, "Client") == before
    assert "fullname" in before[0][3]


async def test_older_changes_are_found_by_the_questions_of_today(maker: Maker, engine: AsyncEngine) -> None:
    """Whole changes, filters, counts and baselines know older names of columns and labels, too."""
    _, second, _ = await in_year_one(maker, engine)
    customer, company = await to_year_two(engine)

    async with maker() as session:
        oldest = (await get_changes(customer, session=session, newest_first=False))[0]
        named = await get_changes(customer, session=session, fields="name")
        found = await get_changes(customer, session=session, old={"name": "Jon"}, new={"name": "Joan"})
        without_model = await get_changes(session=session, new={"name": "Joan"})
        of_company = await get_changes(company, session=session)
        counted = await count_changes(customer, session=session, fields="name")
        by_model = await count_changes_by("model", customer, session=session)
    begun = await create_baseline(customer)

    assert (oldest.model, oldest.resource_type) == (customer, "Customer")
    assert oldest.fields["name"] == (None, "Jon")
    assert oldest.fields["sort"] == (None, "person")
    assert len(named) == counted == 2
    assert [each.change_id for each in found] == [second]
    assert second in [each.change_id for each in without_model]
    assert of_company == []
    assert by_model == {"Customer": 3}
    # Its insert is in the trail, under the label of then.
    assert begun == 0


async def test_older_foreign_keys_lead_to_related_rows(maker: Maker, engine: AsyncEngine) -> None:
    """Rows that were related by a column of another name, in a table of another label, come with include, too."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Shop(Base):
        __tablename__ = "shop"
        id: Mapped[int] = mapped_column(primary_key=True)
        wares: Mapped[list["Ware"]] = relationship()

    @track_table(renamed_fields={"store_id": "shop_id"}, former_labels=["Client"])
    class Ware(Base):
        __tablename__ = "ware"
        id: Mapped[int] = mapped_column(primary_key=True)
        shop_id: Mapped[int | None] = mapped_column(sa.ForeignKey("shop.id"))

    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await insert_in_year_one(engine, 7, {"id": 7, "store_id": 1})
    await insert_in_year_one(engine, 8, {"id": 8, "store_id": 2})

    async with maker() as session:
        changes = await get_changes(Shop, session=session, resource_ids=1, include=["wares"])

    assert [(each.resource_type, each.resource_id) for each in changes] == [("Ware", 7)]
    assert changes[0].fields["shop_id"] == (None, 1)


async def test_the_class_of_older_changes_is_known(maker: Maker, engine: AsyncEngine) -> None:
    """The discriminator may have had another name, too."""
    await in_year_one(maker, engine)
    customer, company = await to_year_two(engine)
    await insert_in_year_one(engine, 2, {"id": 2, "kind": "company", "fullname": "Inc.", "age": 1, "dropped": None})

    async with maker() as session:
        changes = await get_resource_changes(company, session=session)
        snapshot = await get_resource_snapshot(customer, 2, session=session)
        every = [each.resource_id async for each in get_snapshots(company, session=session)]

    assert {each.resource_id for each in changes} == {2}
    assert (snapshot.model, snapshot.state and snapshot.state["name"]) == (company, "Inc.")
    assert every == [2]


async def test_snapshots_are_of_the_fields_of_today(maker: Maker, engine: AsyncEngine) -> None:
    """Dropped columns aren't in them, added ones are from when they were; values of another type are as stored."""
    first, second, third = await in_year_one(maker, engine)
    customer, company = await to_year_two(engine)
    async with maker(expire_on_commit=False) as session:
        loaded = await session.get_one(customer, 1)
        loaded.added, loaded.age = Decimal("1.5"), 7
        await session.commit()
        last = (await ids(maker))[-1]

        states = [
            (await get_resource_snapshot(customer, 1, session=session, at=each)).state
            for each in (first, second, third, last)
        ]
        every = [
            each.state async for each in get_snapshots(customer, session=session, at=second, where={"name": "Joan"})
        ]
        none = [each async for each in get_snapshots(company, session=session, at=second)]
        diff = await diff_resource(customer, 1, first, last, session=session)
        instance = await load_as_of(customer, 1, session=session, at=first)

    assert states == [
        {"id": 1, "sort": "person", "name": "Jon", "age": 42},
        {"id": 1, "sort": "person", "name": "Joan", "age": 42},
        {"id": 1, "sort": "person", "name": "Joan", "age": "old"},
        {"id": 1, "sort": "person", "name": "Joan", "age": 7, "added": Decimal("1.50")},
    ]
    assert every == [states[1]]
    assert none == []
    assert set(diff) == {"name", "age", "added"}
    assert instance is not None
    assert instance.name == "Jon"


async def test_rows_are_restored_across_a_migration(maker: Maker, engine: AsyncEngine) -> None:
    """Under the names of today; what was added later stays; a value that the type of today can't hold is refused."""
    first, _, third = await in_year_one(maker, engine)
    customer, _ = await to_year_two(engine)
    async with maker(expire_on_commit=False) as session:
        loaded = await session.get_one(customer, 1)
        loaded.added = Decimal("1.5")
        await session.commit()

        await restore_resource(customer, 1, session=session, at=first)
        await session.commit()
        row = (await session.execute(sa.text("SELECT customer_name, age, added FROM customer"))).one()
        with pytest.raises(RestoreError, match="another type"):
            await restore_resource(customer, 1, session=session, at=third)
        await session.rollback()
        await restore_resource(customer, 1, session=session, at=third, fields=["name"])
        await session.commit()
        name = (await session.execute(sa.text("SELECT customer_name FROM customer"))).scalar()

    assert (row[0], row[1], float(row[2])) == ("Jon", 42, 1.5)
    assert name == "Joan"


async def test_a_column_that_was_copied_counts_under_its_name_of_today(maker: Maker, engine: AsyncEngine) -> None:
    """While both were there, changes tell both: the one of today is right."""
    await in_year_one(maker, engine)
    customer, _ = await to_year_two(engine)
    values = {"id": 2, "sort": "person", "fullname": "stale", "customer_name": "right", "age": 1}
    await insert_in_year_one(engine, 2, values)

    async with maker() as session:
        snapshot = await get_resource_snapshot(customer, 2, session=session)

    assert snapshot.state is not None
    assert snapshot.state["name"] == "right"


async def test_a_core_table_has_older_names_too(maker: Maker, engine: AsyncEngine) -> None:
    """`track()` takes them for column keys and labels."""
    await in_year_one(maker, engine)
    table = track(
        Table("customers", MetaData(), Column("id", sa.Integer, primary_key=True), Column("name", sa.String)),
        renamed_fields={"fullname": "name"},
        former_labels=["Client"],
    )

    async with maker() as session:
        snapshot = await get_resource_snapshot(table, 1, session=session)

    assert snapshot.state == {"id": 1, "name": "Joan"}


async def test_a_secondary_table_has_older_labels_too(maker: Maker, engine: AsyncEngine) -> None:
    """Rows that were linked under another label of the secondary table are in the parent's history."""

    class Base(DeclarativeBase):
        pass

    def links(name: str, **options: Any) -> Table:
        return track(
            Table(
                name,
                Base.metadata,
                Column("a_id", sa.ForeignKey("a.id"), primary_key=True),
                Column("b_id", sa.ForeignKey("b.id"), primary_key=True),
            ),
            **options,
        )

    link = links("link", former_labels=["old_link"], renamed_fields={"old_a": "a_id"})

    @track_table()
    class B(Base):
        __tablename__ = "b"
        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table(tracked_fields=["id", "bs"])
    class A(Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        bs: Mapped[list[B]] = relationship(secondary=link)

    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with maker() as session:
        await save(session, A(id=1, bs=[B(id=2)]))
        # As it was written before the table and its column were renamed.
        older = {"resource_type": "old_link", "new_values": {"old_a": 1, "b_id": 2}}
        trail = change_table.update().where(change_table.c.resource_type == "link").values(older)
        await (await session.connection()).execute(trail)
        await session.commit()

        snapshot = await get_resource_snapshot(A, 1, session=session, include=["bs"])
        history = await get_resource_changes(A, 1, session, "bs")

    assert [(each.old_value, each.new_value) for each in history] == [(None, 2)]
    assert [each.resource_id for each in snapshot.related["bs"]] == [2]


# --- declarations that can't be --------------------------------------------------------------------------------------


def test_an_old_name_is_of_an_attribute_that_there_is() -> None:
    """A misspelt attribute is an error that lists those there are."""

    class Base(DeclarativeBase):
        pass

    @track_table(renamed_fields={"fullname": "nam"})
    class Model(Base):
        __tablename__ = "model"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    with pytest.raises(UnknownFieldError, match="did you mean name"):
        Base.registry.configure()


def test_the_wrong_direction_is_told() -> None:
    """Who writes the new name first is told how it is meant."""

    class Base(DeclarativeBase):
        pass

    @track_table(renamed_fields={"name": "fullname"})
    class Model(Base):
        __tablename__ = "model"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    with pytest.raises(TrackingError, match=r"old name goes first: \{'fullname': 'name'\}"):
        Base.registry.configure()


def test_an_old_name_is_no_column_of_today() -> None:
    """A column that is still there keeps its changes."""

    class Base(DeclarativeBase):
        pass

    @track_table(renamed_fields={"other": "name"})
    class Model(Base):
        __tablename__ = "model"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        other: Mapped[str]

    with pytest.raises(TrackingError, match="still has a column 'other'"):
        Base.registry.configure()


def test_an_old_name_is_of_one_field() -> None:
    """A subclass in the same table can't say that it is of another."""

    class Base(DeclarativeBase):
        pass

    @track_table(renamed_fields={"old": "name"})
    class Model(Base):
        __tablename__ = "model"
        __mapper_args__ = {"polymorphic_on": "name", "polymorphic_identity": "model"}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    @track_table(renamed_fields={"old": "more"})
    class Sub(Model):
        __mapper_args__ = {"polymorphic_identity": "sub"}
        more: Mapped[str | None]

    with pytest.raises(TrackingError, match="leave one of them out"):
        Base.registry.configure()


@pytest.mark.parametrize(
    "argument", [{"renamed_fields": ["a"]}, {"renamed_fields": {"a": 1}}, {"former_labels": "Old"}]
)
def test_arguments_of_other_types_are_refused(argument: Any) -> None:
    """At once, where they are written."""
    with pytest.raises(TrackingError, match=next(iter(argument))):
        track_table(**argument)


def test_a_former_label_is_nobody_elses() -> None:
    """Neither the label of today nor a former one of another table, nor one's own."""

    class Base(DeclarativeBase):
        pass

    @track_table(former_labels=["Old"])
    class One(Base):
        __tablename__ = "one"
        id: Mapped[int] = mapped_column(primary_key=True)

    Base.registry.configure()

    wrong: list[dict[str, Any]] = [{"former_labels": ["Old"]}, {"former_labels": ["One"]}, {"table_label": "Old"}]
    for number, arguments in enumerate(wrong):
        table = Table(f"t{number}", Base.metadata, Column("id", sa.Integer, primary_key=True))
        with pytest.raises(TrackingError, match="former_labels"):
            track(table, **arguments)
    with pytest.raises(TrackingError, match="label of today"):
        track(Table("three", Base.metadata, Column("id", sa.Integer, primary_key=True)), former_labels=["three"])
    with pytest.raises(TrackingError, match="label of today"):
        track_table(table_label="A", former_labels=["A"])


def test_former_labels_are_of_the_decorated_class() -> None:
    """As its label is: the table of a subclass has its own history."""

    class Base(DeclarativeBase):
        pass

    @track_table(former_labels=["Old"], renamed_fields={"before": "name"})
    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Child(Parent):
        __tablename__ = "child"
        id: Mapped[int] = mapped_column(sa.ForeignKey("parent.id"), primary_key=True)

    Base.registry.configure()
    parent, child = (tracking_of(model.__table__) for model in (Parent, Child))

    assert parent is not None
    assert child is not None
    assert (parent.labels, child.labels) == (("Parent", "Old"), ("Child",))
    assert (parent.renamed, child.renamed) == ({"before": "name"}, {})
