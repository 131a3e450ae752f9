"""Laws 2 and 3: objects of class hierarchies are told in each of their tables, under each table's label."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column, with_polymorphic

from conformance_setup import Maker, changes_of, save, start_audit, stored_changes, story_of
from sqlaudit import get_resource_changes, track, track_table
from sqlaudit.exceptions import UntrackedError


class Base(DeclarativeBase):
    pass


@track_table(table_label="Staff")
class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]


class Engineer(Person):
    __tablename__ = "engineer"
    __mapper_args__ = {"polymorphic_identity": "engineer"}
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    skill: Mapped[str | None]


class Chief(Engineer):
    __tablename__ = "chief"
    __mapper_args__ = {"polymorphic_identity": "chief"}
    id: Mapped[int] = mapped_column(ForeignKey("engineer.id"), primary_key=True)
    budget: Mapped[int | None]


class Intern(Engineer):
    """A class without a table of its own."""

    __mapper_args__ = {"polymorphic_identity": "intern"}


async def test_joined_inserts_are_told_in_every_table(maker: Maker) -> None:
    """An object of a subclass tells an insert in its own table and in each of its bases', under their labels."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Chief(name="a", skill="s", budget=5))

    assert await story_of(maker, Person) == [
        ("insert", {"id": (None, 1), "kind": (None, "chief"), "name": (None, "a")})
    ]
    assert await story_of(maker, Engineer) == [("insert", {"id": (None, 1), "skill": (None, "s")})]
    assert await story_of(maker, Chief) == [("insert", {"id": (None, 1), "budget": (None, 5)})]
    labels = {change.resource_type for change in await changes_of(maker, Chief)}
    assert labels == {"Staff", "Engineer", "Chief"}


@pytest.mark.parametrize("expired", [False, True])
async def test_joined_updates_are_told_in_the_tables_that_changed(maker: Maker, expired: bool) -> None:
    """An update of one level's column is told in that level's table alone."""
    await start_audit(maker, Base)

    async with maker() as session:
        chief = Chief(name="a", skill="s", budget=5)
        await save(session, chief)
        for attribute, value in {"budget": 6, "skill": "t", "name": "b"}.items():
            if not expired:
                await session.refresh(chief)
            setattr(chief, attribute, value)
            await session.commit()

    assert (await story_of(maker, Chief))[1:] == [("update", {"budget": (5, 6)})]
    assert (await story_of(maker, Engineer))[1:] == [("update", {"skill": ("s", "t")})]
    assert (await story_of(maker, Person))[1:] == [("update", {"name": ("a", "b")})]


@pytest.mark.parametrize("loaded_as", [Person, Engineer, Chief])
async def test_joined_deletes_are_told_in_every_table(maker: Maker, loaded_as: type[Person]) -> None:
    """A delete tells each table's row, whichever class the object was loaded through."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Chief(name="a", skill="s", budget=5))
    async with maker() as session:
        await session.delete((await session.scalars(sa.select(loaded_as))).one())
        await session.commit()

    assert (await story_of(maker, Chief))[1:] == [("delete", {"id": (1, None), "budget": (5, None)})]
    assert (await story_of(maker, Engineer))[1:] == [("delete", {"id": (1, None), "skill": ("s", None)})]
    assert (await story_of(maker, Person))[1:] == [
        ("delete", {"id": (1, None), "kind": ("chief", None), "name": ("a", None)})
    ]


async def test_joined_rows_are_told_in_the_order_of_the_sql(maker: Maker) -> None:
    """The rows of an object are told as they are written: bases first on insert and update, last on delete."""
    await start_audit(maker, Base)

    async with maker() as session:
        chief = Chief(name="a", skill="s", budget=5)
        await save(session, chief)
        await session.delete(chief)
        await session.commit()

    rows = {change.change_id: (change.operation, change.resource_type) for change in await changes_of(maker, Chief)}
    assert list(rows.values()) == [
        ("insert", "Staff"),
        ("insert", "Engineer"),
        ("insert", "Chief"),
        ("delete", "Chief"),
        ("delete", "Engineer"),
        ("delete", "Staff"),
    ]


async def test_joined_subclasses_without_a_table_are_told_in_their_bases(maker: Maker) -> None:
    """An object of a subclass that has no table of its own is told in its bases' tables."""
    await start_audit(maker, Base)

    async with maker() as session:
        intern = Intern(name="a", skill="s")
        await save(session, intern)
        intern.skill = "t"
        await session.commit()
        await session.delete(intern)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Engineer)] == ["insert", "update", "delete"]
    assert [operation for operation, _ in await story_of(maker, Person)] == ["insert", "delete"]


async def test_polymorphic_loading_tells_the_same(maker: Maker) -> None:
    """Objects that were loaded with all of their tables tell the same updates."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Chief(name="a", budget=1), Engineer(name="b", skill="s"), Person(name="c"))
    async with maker() as session:
        everybody = (await session.scalars(sa.select(with_polymorphic(Person, "*")).order_by(Person.id))).all()
        for person in everybody:
            person.name += "!"
            if isinstance(person, Engineer):
                person.skill = "t"
        await session.commit()

    assert [fields for _, fields in (await story_of(maker, Person))[3:]] == [
        {"name": ("a", "a!")},
        {"name": ("b", "b!")},
        {"name": ("c", "c!")},
    ]
    assert [fields for _, fields in (await story_of(maker, Engineer))[2:]] == [
        {"skill": (None, "t")},
        {"skill": ("s", "t")},
    ]


async def test_retrieval_for_a_class_merges_its_tables(maker: Maker) -> None:
    """The trail of a class has the changes of its own, its bases' and its subclasses' tables."""
    await start_audit(maker, Base)

    async with maker() as session:
        chief = Chief(name="a", skill="s", budget=5)
        await save(session, chief)
        await session.refresh(chief)
        chief.name, chief.budget = "b", 6
        await session.commit()

    updated = [each for each in await changes_of(maker, Person, 1) if each.operation == "update"]
    assert sorted((each.resource_type, each.field_name, each.old_value, each.new_value) for each in updated) == [
        ("Chief", "budget", 5, 6),
        ("Staff", "name", "a", "b"),
    ]


async def test_mixed_flushes_of_a_hierarchy_are_told(maker: Maker) -> None:
    """Objects of several classes that are inserted, updated and deleted in one flush are told in each table."""
    await start_audit(maker, Base)

    async with maker() as session:
        people = [Chief(name="a", budget=1), Engineer(name="b", skill="s"), Person(name="c"), Chief(name="d", budget=2)]
        await save(session, *people)
        await session.delete(people[0])
        await session.delete(people[2])
        people[1].name = "B"
        people[3].budget = 3  # type: ignore[attr-defined]
        session.add_all([Chief(name="e", budget=4), Engineer(name="f")])
        await session.commit()

    for model, operations in {
        Person: ["delete"] * 2 + ["insert"] * 6 + ["update"],
        Engineer: ["delete"] + ["insert"] * 5,
        Chief: ["delete"] + ["insert"] * 3 + ["update"],
    }.items():
        assert sorted(operation for operation, _ in await story_of(maker, model)) == operations


async def test_single_table_inheritance_tells_the_whole_row(maker: Maker) -> None:
    """An object in a shared table tells every tracked column of the table, those of its siblings as NULL."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Vehicle(Base):
        __tablename__ = "vehicle"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Car(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "car"}
        doors: Mapped[int | None]

    class Boat(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "boat"}
        sails: Mapped[int | None] = mapped_column(server_default="1")

    await start_audit(maker, Base)

    async with maker() as session:
        car, boat = Car(doors=4), Boat(sails=2)
        await save(session, car, boat)
        car.doors = 5
        await session.commit()
    async with maker() as session:
        for vehicle in await session.scalars(sa.select(Vehicle)):
            await session.delete(vehicle)
        await session.commit()

    assert await story_of(maker, Vehicle) == [
        ("insert", {"id": (None, 1), "kind": (None, "car"), "doors": (None, 4), "sails": (None, 1)}),
        ("insert", {"id": (None, 2), "kind": (None, "boat"), "doors": (None, None), "sails": (None, 2)}),
        ("update", {"doors": (4, 5)}),
        ("delete", {"id": (1, None), "kind": ("car", None), "doors": (5, None), "sails": (1, None)}),
        ("delete", {"id": (2, None), "kind": ("boat", None), "doors": (None, None), "sails": (2, None)}),
    ]


async def test_single_table_columns_that_only_a_sibling_maps_are_told(maker: Maker) -> None:
    """What onupdate, in the table of a sibling's column, does to a row isn't invented."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Vehicle(Base):
        __tablename__ = "vehicle"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]

    class Car(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "car"}

    class Boat(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "boat"}
        trips: Mapped[int | None] = mapped_column(default=1, onupdate=2)

    await start_audit(maker, Base)

    async with maker() as session:
        car, boat = Car(name="a"), Boat(name="b")
        await save(session, car, boat)
        car.name, boat.name = "c", "d"
        await session.commit()

    assert len(await story_of(maker, Vehicle)) == 4


async def test_tracking_on_a_single_table_subclass_tells_its_columns(maker: Maker) -> None:
    """Tracking that only a subclass declares is about its table, which it shares with its base."""

    class Base(DeclarativeBase):
        pass

    class Vehicle(Base):
        __tablename__ = "vehicle"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]

    @track_table()
    class Car(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "car"}
        doors: Mapped[int | None]

    await start_audit(maker, Base)

    async with maker() as session:
        car = Car(name="a", doors=4)
        await save(session, car)
        car.doors = 5
        await session.commit()
        await session.delete(car)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Car)] == ["insert", "update", "delete"]


async def test_tracking_on_a_joined_subclass_tells_its_bases_too(maker: Maker) -> None:
    """Tracking that only a subclass declares is about all of its columns, in its base's table too."""

    class Base(DeclarativeBase):
        pass

    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    @track_table()
    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        dog = Dog(name="Rex", trick="sit")
        await save(session, dog)
        dog.name, dog.trick = "Max", "roll"
        await session.commit()
        await session.delete(dog)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Dog)] == ["insert", "update", "delete"]
    assert [operation for operation, _ in await story_of(maker, Animal)] == ["insert", "update", "delete"]


async def test_objects_of_an_untracked_base_in_a_tracked_table_are_told(maker: Maker) -> None:
    """A table that a subclass' tracking covers is told for its base's own objects too."""

    class Base(DeclarativeBase):
        pass

    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    @track_table()
    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)

    await start_audit(maker, Base)

    async with maker() as session:
        animal = Animal(name="a")
        await save(session, animal)
        animal.name = "b"
        await session.commit()

    assert await story_of(maker, Animal) == [
        ("insert", {"id": (None, 1), "kind": (None, "animal"), "name": (None, "a")}),
        ("update", {"name": ("a", "b")}),
    ]


async def test_tracked_fields_of_a_base_hold_for_its_subclasses(maker: Maker) -> None:
    """A subclass inherits the fields that its base declares, and doesn't tell others."""

    class Base(DeclarativeBase):
        pass

    @track_table(tracked_fields=["name"])
    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    @track_table(tracked_fields=["trick"], table_label="Hound")
    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str]
        secret: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        dog = Dog(name="Rex", trick="sit", secret="x")
        await save(session, dog)
        dog.name, dog.secret = "Max", "y"
        await session.commit()
        dog.trick = "roll"
        await session.commit()

    assert (await story_of(maker, Animal, only=["name"]))[1:] == [("update", {"name": ("Rex", "Max")})]
    assert (await story_of(maker, Dog, only=["trick"]))[1:] == [("update", {"trick": ("sit", "roll")})]
    assert [new for _, _, _, new in await stored_changes(maker, "Hound")] == [
        {"id": 1, "trick": "sit"},
        {"trick": "roll"},
    ]


async def test_concrete_inheritance_tells_each_class_in_its_table(maker: Maker) -> None:
    """With concrete tables each object is told in its class' table alone."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Shape(Base):
        __tablename__ = "shape"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Circle(Shape):
        __tablename__ = "circle"
        __mapper_args__ = {"concrete": True}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        radius: Mapped[int]

    await start_audit(maker, Base)

    async with maker() as session:
        shape, circle = Shape(name="s"), Circle(name="c", radius=1)
        await save(session, shape, circle)
        shape.name = "t"
        circle.radius = 2
        await session.commit()
        await session.delete(circle)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Shape)] == ["insert", "update"]
    assert await story_of(maker, Circle) == [
        ("insert", {"id": (None, 1), "name": (None, "c"), "radius": (None, 1)}),
        ("update", {"radius": (1, 2)}),
        ("delete", {"id": (1, None), "name": ("c", None), "radius": (2, None)}),
    ]
    assert {change.resource_type for change in await changes_of(maker, Circle)} == {"Circle"}


async def test_abstract_concrete_bases_hand_on_their_tracking(maker: Maker) -> None:
    """Tracking on an AbstractConcreteBase is about the tables of its subclasses."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Shape(AbstractConcreteBase, Base):
        strict_attrs = True
        name: Mapped[str]

    class Circle(Shape):
        __tablename__ = "circle"
        __mapper_args__ = {"polymorphic_identity": "circle", "concrete": True}
        id: Mapped[int] = mapped_column(primary_key=True)

    class Square(Shape):
        __tablename__ = "square"
        __mapper_args__ = {"polymorphic_identity": "square", "concrete": True}
        id: Mapped[int] = mapped_column(primary_key=True)

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Circle(name="c"), Square(name="s"))

    assert [fields["name"] for _, fields in await story_of(maker, Circle)] == [(None, "c")]
    assert [fields["name"] for _, fields in await story_of(maker, Square)] == [(None, "s")]


async def test_abstract_bases_hand_on_their_tracking(maker: Maker) -> None:
    """Tracking on an abstract base is about each of its subclasses, under their own labels."""

    class Base(DeclarativeBase):
        pass

    @track_table(exclude_fields=["internal"])
    class Audited(Base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)
        internal: Mapped[int] = mapped_column(default=0)

    class Item(Audited):
        __tablename__ = "item"
        name: Mapped[str]

    class Part(Audited):
        __tablename__ = "part"
        code: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        item, part = Item(name="a"), Part(code="x")
        await save(session, item, part)
        item.internal = 1
        part.code = "y"
        await session.commit()

    assert await story_of(maker, Item, only=["id", "name"]) == [("insert", {"id": (None, 1), "name": (None, "a")})]
    assert (await story_of(maker, Part, only=["id", "code"]))[1:] == [("update", {"code": ("x", "y")})]
    assert {change.resource_type for change in await changes_of(maker, Part)} == {"Part"}


async def test_the_declarative_base_hands_on_its_tracking(maker: Maker) -> None:
    """Tracking on the declarative base itself is about every model."""

    @track_table()
    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"))

    assert len(await story_of(maker, Item)) == 1


async def test_mixins_hand_on_their_tracking(maker: Maker) -> None:
    """Tracking on a mixin is about every model that mixes it in, and no other."""

    class Base(DeclarativeBase):
        pass

    @track_table(masked_fields=["secret"])
    class Audited:
        secret: Mapped[str | None] = mapped_column()

        @declared_attr.directive
        def __tablename__(cls) -> str:  # noqa: N805
            return cls.__name__.lower()  # type: ignore[attr-defined, no-any-return]

    class Item(Audited, Base):
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Other(Base):
        __tablename__ = "other"
        id: Mapped[int] = mapped_column(primary_key=True)

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", secret="hush")
        await save(session, item, Other())
        item.secret = "hush hush"
        await session.commit()

    masked = {"$masked": True}
    assert await stored_changes(maker, "Item") == [
        ("insert", "1", None, {"id": 1, "name": "a", "secret": masked}),
        ("update", "1", {"secret": masked}, {"secret": masked}),
    ]
    async with maker() as session:
        with pytest.raises(UntrackedError, match="Other is not tracked"):
            await get_resource_changes(Other, session=session)


async def test_subclasses_that_are_mapped_later_are_told(maker: Maker) -> None:
    """A subclass that is defined after its base was used is told as well."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}
        lives: Mapped[int | None]

    await start_audit(maker, Base)
    async with maker() as session:
        await save(session, Animal(name="a"))

    class Kitten(Cat):
        __mapper_args__ = {"polymorphic_identity": "kitten"}

    async with maker() as session:
        kitten: Any = Kitten(name="k", lives=9)
        await save(session, kitten)
        kitten.lives = 8
        await session.commit()

    assert (await story_of(maker, Animal))[2:] == [("update", {"lives": (9, 8)})]


async def test_discriminators_that_are_expressions_are_told(maker: Maker) -> None:
    """A hierarchy whose discriminator is computed by a CASE tells its rows' columns, and nothing else."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Animal(Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        legs: Mapped[int]
        __mapper_args__ = {
            "polymorphic_on": sa.case((sa.column("legs") == 2, "bird"), else_="animal"),
            "polymorphic_identity": "animal",
        }

    class Bird(Animal):
        __mapper_args__ = {"polymorphic_identity": "bird"}

    await start_audit(maker, Base)

    async with maker() as session:
        bird = Bird(legs=2)
        await save(session, bird)
        bird.legs = 1
        await session.commit()

    assert await story_of(maker, Animal) == [
        ("insert", {"id": (None, 1), "legs": (None, 2)}),
        ("update", {"legs": (2, 1)}),
    ]


async def test_several_tables_of_one_class_are_told(maker: Maker) -> None:
    """A class that is mapped to a join of tracked tables tells a change in each of its tables."""

    class Base(DeclarativeBase):
        pass

    people = sa.Table(
        "people", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String)
    )
    addresses = sa.Table(
        "addresses",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("person_id", sa.ForeignKey("people.id")),
        sa.Column("street", sa.String),
    )

    track(people)
    track(addresses)

    class Resident(Base):
        __table__ = people.join(addresses)
        id = sa.orm.column_property(people.c.id, addresses.c.person_id)
        address_id = addresses.c.id

    await start_audit(maker, Base)

    async with maker() as session:
        resident: Any = Resident(name="a", street="x")
        await save(session, resident)
        resident.street = "y"
        await session.commit()
        resident.name = "b"
        await session.commit()
        await session.delete(resident)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, people)] == ["insert", "update", "delete"]
    assert [operation for operation, _ in await story_of(maker, addresses)] == ["insert", "update", "delete"]


@pytest.mark.parametrize(
    "order",
    [
        "tracked first",
        "tracked last",
    ],
)
async def test_other_classes_of_a_tracked_table_are_told(maker: Maker, order: str) -> None:
    """A second class that is mapped to the table of a tracked one tells its objects too, or is refused."""

    class Base(DeclarativeBase):
        pass

    table = sa.Table("item", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))

    def map_tracked() -> type[Base]:
        @track_table()
        class Item(Base):
            __table__ = table

        return Item

    # A class that nobody holds is gone before its mapper is configured.
    tracked = [map_tracked()] if order == "tracked first" else []

    class View(Base):
        __table__ = table

    if order == "tracked last":
        tracked.append(map_tracked())
    await start_audit(maker, Base)

    async with maker() as session:
        view: Any = View(name="a")
        await save(session, view)
        view.name = "b"
        await session.commit()
        await session.delete(view)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, table)] == ["insert", "update", "delete"]
