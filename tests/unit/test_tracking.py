"""What is declared to be audited, and what comes of it on the tables."""

import datetime as dt
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    PickleType,
    String,
    Table,
    create_engine,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    composite,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from sqlaudit import track, track_table
from sqlaudit.exceptions import TrackingError, UnknownFieldError, UnsupportedTypeError
from sqlaudit.tracking import Link, Tracking, declaration_of, tracked_tables, tracking_of


def new_base() -> Any:
    """Return a declarative base whose mappers are configured apart from all others."""

    class Base(DeclarativeBase):
        pass

    return Base


def resolved(cls: Any) -> Tracking | None:
    """Configure the mappers of *cls*'s registry, and return what is audited of its own table."""
    inspect(cls).registry.configure()
    return tracking_of(inspect(cls).local_table)


def customer(base: Any, **arguments: Any) -> Any:
    """Return a model of customers, tracked with *arguments*."""

    @track_table(**arguments)
    class Customer(base):  # type: ignore[misc]
        __tablename__ = "customer"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        email: Mapped[str | None]
        password: Mapped[str | None]

    return Customer


# --- what is audited -------------------------------------------------------------------------------------------------


def test_without_a_list_every_column_is_audited() -> None:
    """All columns are tracked in the order of the table, under the class's name, by the primary key."""
    tracking = resolved(customer(new_base()))

    assert tracking == Tracking(
        label="Customer",
        fields=("id", "name", "email", "password"),
        recorded=("id", "name", "email", "password"),
        masked=frozenset(),
        resource_key=("id",),
        user_key=None,
    )


def test_named_fields_alone_are_audited() -> None:
    """With a list only those are tracked, in the order of the table; the key is recorded, too."""
    tracking = resolved(customer(new_base(), tracked_fields=["email", "name"]))

    assert tracking is not None
    assert tracking.fields == ("name", "email")
    assert tracking.recorded == ("id", "name", "email")


@pytest.mark.parametrize("names", [("name",), {"name"}, frozenset({"name"}), {"name": 1}.keys()], ids=type)
def test_any_collection_of_names_will_do(names: Any) -> None:
    """Tuples, sets and views are as good as lists."""
    tracking = resolved(customer(new_base(), tracked_fields=names))

    assert tracking is not None
    assert tracking.fields == ("name",)


def test_excluded_fields_are_not_audited() -> None:
    """What is excluded is neither tracked nor recorded."""
    tracking = resolved(customer(new_base(), exclude_fields=["password"]))

    assert tracking is not None
    assert tracking.fields == tracking.recorded == ("id", "name", "email")


def test_masking_a_field_tracks_it() -> None:
    """A masked field is audited even if the list doesn't name it."""
    tracking = resolved(customer(new_base(), tracked_fields=["name"], masked_fields=["password"]))

    assert tracking is not None
    assert tracking.fields == ("name", "password")
    assert tracking.masked == {"password"}


def test_a_label_of_ones_own_is_the_resource_type() -> None:
    """The label that was given goes before the name of the class."""
    tracking = resolved(customer(new_base(), table_label="Client"))

    assert tracking is not None
    assert tracking.label == "Client"


def test_another_field_can_be_the_resource_id() -> None:
    """The field that was named identifies a row in the trail; the primary key is recorded still."""
    tracking = resolved(customer(new_base(), tracked_fields=["name"], resource_id_field="email"))

    assert tracking is not None
    assert tracking.resource_key == ("email",)
    assert tracking.recorded == ("id", "name")
    assert tracking.key_columns == {"email"}


def test_a_field_can_name_the_actor() -> None:
    """The field that holds who made the change is one of the columns that every change needs."""
    tracking = resolved(customer(new_base(), user_id_field="email"))

    assert tracking is not None
    assert tracking.user_key == "email"
    assert tracking.key_columns == {"id", "email"}


def test_fields_are_attribute_names_and_are_kept_as_column_keys() -> None:
    """The declaration speaks of attributes; the trail keeps the keys of the columns."""
    Base = new_base()  # noqa: N806 (a class)

    @track_table(["given_name"], masked_fields=["token"])
    class Person(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "person"

        number: Mapped[int] = mapped_column("id", primary_key=True)
        given_name: Mapped[str] = mapped_column("first_name")
        token: Mapped[str] = mapped_column("secret", key="hidden")

    tracking = resolved(Person)

    assert tracking is not None
    assert tracking.fields == ("first_name", "hidden")
    assert tracking.recorded == ("id", "first_name", "hidden")
    assert tracking.masked == {"hidden"}


class Point(NamedTuple):
    x: int
    y: int


def shape(**arguments: Any) -> Any:
    """Return a model with attributes that are no columns, tracked with *arguments*."""

    @track_table(**arguments)
    class Shape(new_base()):  # type: ignore[misc]
        __tablename__ = "shape"

        id: Mapped[int] = mapped_column(primary_key=True)
        x: Mapped[int]
        y: Mapped[int]
        name: Mapped[str]
        center: Mapped[Point] = composite(Point, "x", "y")
        title: Mapped[str] = synonym("name")
        one: Mapped[int] = column_property(literal(1))

    return Shape


def test_what_sql_computes_is_not_audited() -> None:
    """A column_property of an SQL expression isn't stored in the row, so it has no history, and can't be named."""
    tracking, naming = resolved(shape()), shape(tracked_fields=["one"])

    assert tracking is not None
    assert tracking.fields == ("id", "x", "y", "name")
    with pytest.raises(UnknownFieldError):
        resolved(naming)


def test_a_synonym_stands_for_its_column() -> None:
    """A field may be named by a synonym, and is kept as the column that it is."""
    tracking = resolved(shape(tracked_fields=["title"]))

    assert tracking is not None
    assert tracking.fields == ("name",)


def test_a_composite_stands_for_its_columns() -> None:
    """A field may be named by a composite, and is kept as all of its columns."""
    tracking = resolved(shape(tracked_fields=["center"]))

    assert tracking is not None
    assert tracking.fields == ("x", "y")


def test_a_key_of_several_columns_is_the_resource_id() -> None:
    """All columns of a composite primary key identify a row, in the key's order."""
    table = Table("t", MetaData(), Column("b", Integer), Column("a", Integer, primary_key=True), Column("c", Integer))
    table.append_column(Column("d", Integer, primary_key=True))

    tracking = tracking_of(track(table))

    assert tracking is not None
    assert tracking.resource_key == ("a", "d")


def test_nothing_is_audited_of_what_was_not_declared() -> None:
    """A table without a declaration, and something that is no table, have no tracking."""

    class Plain(new_base()):  # type: ignore[misc]
        __tablename__ = "plain"

        id: Mapped[int] = mapped_column(primary_key=True)

    tracking = resolved(Plain)

    assert tracking is None
    assert tracking_of(select(literal(1)).subquery()) is None
    assert list(tracked_tables(inspect(Plain))) == []
    assert declaration_of(Plain) is None


def test_nothing_is_resolved_before_the_mappers_are_configured() -> None:
    """A declaration may name what a later class adds: fields are looked up at mapper configuration."""
    cls = customer(new_base(), tracked_fields=["name"])

    early = tracking_of(cls.__table__)

    assert early is None
    assert resolved(cls) is not None


# --- every way to map ------------------------------------------------------------------------------------------------


def _declarative() -> type[Any]:
    @track_table(["name"])
    class Model(new_base()):  # type: ignore[misc]
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    return Model


def _dataclass() -> type[Any]:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    @track_table(["name"])
    class Model(Base):
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    return Model


def _decorated_by_a_registry() -> type[Any]:
    mapped = registry()

    @track_table(["name"])
    @mapped.mapped
    class Model:
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    return Model


def _below_the_decorator_of_a_registry() -> type[Any]:
    mapped = registry()

    @mapped.mapped
    @track_table(["name"])
    class Model:
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column()

    return Model


def _core_table(metadata: MetaData) -> Table:
    return Table("model", metadata, Column("id", Integer, primary_key=True), Column("name", String))


def _imperative() -> type[Any]:
    class Model:
        pass

    mapped = registry()
    mapped.map_imperatively(Model, _core_table(mapped.metadata))
    return track_table(["name"])(Model)


def _imperative_table() -> type[Any]:
    Base = new_base()  # noqa: N806 (a class)

    @track_table(["name"])
    class Model(Base):  # type: ignore[misc, valid-type]
        __table__ = _core_table(Base.metadata)

    return Model


def _abstract_base() -> type[Any]:
    @track_table(["name"])
    class Named(new_base()):  # type: ignore[misc]
        __abstract__ = True

        name: Mapped[str]

    class Model(Named):
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)

    return Model


def _mixin() -> type[Any]:
    @track_table(["name"])
    class Named:
        name: Mapped[str] = mapped_column()

    class Model(Named, new_base()):  # type: ignore[misc]
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)

    return Model


def _declarative_base_itself() -> type[Any]:
    @track_table(["name"])
    class Base(DeclarativeBase):
        pass

    class Model(Base):
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    return Model


def _reflected() -> type[Any]:
    engine = create_engine("sqlite://")
    Base = new_base()  # noqa: N806 (a class)
    with engine.connect() as connection:
        _core_table(MetaData()).create(connection)
        reflected = Table("model", Base.metadata, autoload_with=connection)
    engine.dispose()

    @track_table(["name"])
    class Model(Base):  # type: ignore[misc, valid-type]
        __table__ = reflected

    return Model


def _reflected_later() -> type[Any]:
    engine = create_engine("sqlite://")

    class Reflected(DeferredReflection):
        __abstract__ = True

    @track_table(["name"])
    class Model(Reflected, new_base()):  # type: ignore[misc]
        __tablename__ = "model"

    with engine.connect() as connection:
        _core_table(MetaData()).create(connection)
        Reflected.prepare(connection)
    engine.dispose()
    return Model


def _configured_already() -> type[Any]:
    class Model(new_base()):  # type: ignore[misc]
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    inspect(Model).registry.configure()
    return track_table(["name"])(Model)


@pytest.mark.parametrize(
    "make",
    [
        _declarative,
        _dataclass,
        _decorated_by_a_registry,
        _below_the_decorator_of_a_registry,
        _imperative,
        _imperative_table,
        _abstract_base,
        _mixin,
        _declarative_base_itself,
        _reflected,
        pytest.param(
            _reflected_later,
        ),
        _configured_already,
    ],
    ids=lambda make: make.__name__.strip("_"),
)
def test_a_model_can_be_tracked_however_it_is_mapped(make: Callable[[], type[Any]]) -> None:
    """Every way to map a class gives the same tracking."""
    tracking = resolved(make())

    assert tracking == Tracking(
        label="Model",
        fields=("name",),
        recorded=("id", "name"),
        masked=frozenset(),
        resource_key=("id",),
        user_key=None,
    )


def test_a_core_table_is_tracked_at_once() -> None:
    """`track` returns the table, which is tracked by column keys under its own name."""
    table = _core_table(MetaData())

    returned = track(table, tracked_fields=["name"])

    assert returned is table
    assert tracking_of(table) == Tracking(
        label="model",
        fields=("name",),
        recorded=("id", "name"),
        masked=frozenset(),
        resource_key=("id",),
        user_key=None,
    )


def test_every_argument_of_track_is_heeded() -> None:
    """`track` takes what `track_table` takes."""
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        *(Column(name, String) for name in ("a", "b", "c", "d")),
    )

    track(
        table,
        tracked_fields=["a"],
        exclude_fields=["d"],
        masked_fields=["b"],
        table_label="Label",
        resource_id_field="c",
        user_id_field="a",
    )

    assert tracking_of(table) == Tracking(
        label="Label",
        fields=("a", "b"),
        recorded=("id", "a", "b"),
        masked=frozenset({"b"}),
        resource_key=("c",),
        user_key="a",
    )


def test_tracked_tables_are_created_with_their_trail() -> None:
    """create_all() of the models creates the trail beside them, and again is no error."""
    engine = create_engine("sqlite://")
    Base = new_base()  # noqa: N806 (a class)
    customer(Base)

    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        Base.metadata.create_all(connection)
        names = inspect(connection).get_table_names()
    engine.dispose()

    assert sorted(names) == ["customer", "sqlaudit_change"]


# --- inheritance -----------------------------------------------------------------------------------------------------


def _employees(**arguments: Any) -> Any:
    """Return the models of a joined inheritance, the base tracked with *arguments*."""
    Base = new_base()  # noqa: N806 (a class)

    @track_table(**arguments)
    class Employee(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "employee"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    class Engineer(Employee):
        __tablename__ = "engineer"
        __mapper_args__ = {"polymorphic_identity": "engineer"}

        id: Mapped[int] = mapped_column(ForeignKey("employee.id"), primary_key=True)
        language: Mapped[str]

    return Employee, Engineer


def test_a_subclass_with_a_table_is_tracked_under_its_own_name() -> None:
    """Each table of a joined inheritance has the label of the class that owns it, and its own columns."""
    employee, engineer = _employees()

    base, own = resolved(employee), resolved(engineer)

    assert base is not None
    assert own is not None
    assert (base.label, base.fields) == ("Employee", ("id", "kind", "name"))
    assert (own.label, own.fields) == ("Engineer", ("id", "language"))


def test_the_label_of_a_base_is_not_its_subclasses() -> None:
    """A subclass without a label has its class's name, whatever the base's label is."""
    employee, engineer = _employees(table_label="Staff")

    labels = [tracking.label for tracking in (resolved(employee), resolved(engineer)) if tracking is not None]

    assert labels == ["Staff", "Engineer"]


def test_a_tracked_subclass_audits_the_table_of_its_base_under_the_name_of_the_base() -> None:
    """Where the subclass alone is tracked, the columns that it inherits are audited in the table that has them."""
    Base = new_base()  # noqa: N806 (a class)

    class Vehicle(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "vehicle"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    @track_table()
    class Car(Vehicle):
        __tablename__ = "car"
        __mapper_args__ = {"polymorphic_identity": "car"}

        id: Mapped[int] = mapped_column(ForeignKey("vehicle.id"), primary_key=True)
        doors: Mapped[int]

    base, own = resolved(Vehicle), resolved(Car)

    assert base is not None
    assert own is not None
    assert (base.label, base.fields) == ("Vehicle", ("id", "kind"))
    assert (own.label, own.fields) == ("Car", ("id", "doors"))


def test_the_tables_of_a_mapper_come_bases_first() -> None:
    """A mapper's tracked tables are those of the whole row, the base's before its own."""
    employee, engineer = _employees()
    resolved(employee)

    tables = [table.name for table, _ in tracked_tables(inspect(engineer))]

    assert tables == ["employee", "engineer"]


def test_classes_of_one_table_are_tracked_as_one() -> None:
    """Single-table inheritance tracks the columns of all classes, under the label of the one that owns the table."""
    Base = new_base()  # noqa: N806 (a class)

    @track_table(["name"])
    class Animal(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    @track_table(["bark"], masked_fields=["chip"])
    class Dog(Animal):
        __mapper_args__ = {"polymorphic_identity": "dog"}

        bark: Mapped[str | None]
        chip: Mapped[str | None]

    tracking = resolved(Dog)

    assert tracking is not None
    assert tracking.label == "Animal"
    assert tracking.fields == ("name", "bark", "chip")
    assert tracking.masked == {"chip"}


def test_a_subclass_may_declare_something_else() -> None:
    """A subclass's own declaration goes before the inherited one."""
    Base = new_base()  # noqa: N806 (a class)

    @track_table(["name"])
    class Named(Base):  # type: ignore[misc, valid-type]
        __abstract__ = True

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Inheriting(Named):
        __tablename__ = "inheriting"

        email: Mapped[str]

    @track_table(["email"])
    class Declaring(Named):
        __tablename__ = "declaring"

        email: Mapped[str]

    fields = [tracking.fields for tracking in map(resolved, (Inheriting, Declaring)) if tracking is not None]

    assert fields == [("name",), ("email",)]


def test_a_decorated_class_is_the_class_itself() -> None:
    """`track_table` returns the class that it was given."""

    class Model(new_base()):  # type: ignore[misc]
        __tablename__ = "model"

        id: Mapped[int] = mapped_column(primary_key=True)

    decorated = track_table()(Model)

    assert decorated is Model


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"tracked_fields": ["emial"]},
        {"exclude_fields": ["emial"]},
        {"masked_fields": ["emial"]},
        {"resource_id_field": "emial"},
        {"user_id_field": "emial"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_misspelt_field_is_refused_at_mapper_configuration(arguments: dict[str, Any]) -> None:
    """The error says which argument names it, what may have been meant, and what fields there are."""
    cls = customer(new_base(), **arguments)

    with pytest.raises(UnknownFieldError) as caught:
        resolved(cls)

    assert str(caught.value) == (
        f"{next(iter(arguments))} names 'emial', which the model Customer doesn't have (did you mean email?); "
        f"its fields are email, id, name, password."
    )
    assert caught.value.unknown == ["emial"]
    assert caught.value.known == ["email", "id", "name", "password"]


def test_a_misspelt_column_of_a_core_table_is_refused_at_once() -> None:
    """`track` knows the columns, so it needn't wait."""
    with pytest.raises(UnknownFieldError, match=r"tracked_fields names 'nmae', which the table model doesn't have"):
        track(_core_table(MetaData()), tracked_fields=["nmae"])


def articles(*names: str) -> Any:
    """Return a model with relationships of each kind, of which *names* are tracked."""
    Base = new_base()  # noqa: N806 (a class)
    article_tag = Table(
        "article_tag",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "tag"

        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table(names)
    class Article(Base):  # type: ignore[misc, valid-type]
        __tablename__ = "article"

        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))
        parent: Mapped["Article | None"] = relationship(remote_side="Article.id")
        tags: Mapped[list[Tag]] = relationship(secondary=article_tag)

    return Article


def test_a_many_to_many_relationship_is_a_link_to_its_tracked_table() -> None:
    """A relationship that is named beside columns tracks its secondary table, and is no column itself."""
    article = articles("title", "tags")

    tracking = resolved(article)

    secondary = article.metadata.tables["article_tag"]
    assert tracking is not None
    assert tracking.fields == ("title",)
    assert tracking.links == (Link("tags", secondary, ("article_id",), ("tag_id",)),)
    assert tracking_of(secondary) is not None


def test_a_relationship_that_is_not_named_is_not_tracked() -> None:
    """The secondary table of a relationship is audited only where the relationship is named."""
    article = articles("title")

    tracking = resolved(article)

    assert tracking is not None
    assert tracking.links == ()
    assert tracking_of(article.metadata.tables["article_tag"]) is None


def test_a_relationship_by_a_foreign_key_is_refused() -> None:
    """A relationship without a secondary table has no rows of its own; the error points to the foreign key."""
    article = articles("title", "parent")

    with pytest.raises(
        TrackingError, match=r"Article\.parent is a relationship without.+ name the column that holds it"
    ):
        resolved(article)


def test_relationships_alone_are_refused() -> None:
    """A row is known by its columns, so one of them is named beside its relationships."""
    article = articles("tags")

    with pytest.raises(TrackingError, match=r"Article names relationships alone; name at least one column, too\.$"):
        resolved(article)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracked_fields": "name"}, "tracked_fields is 'name'; expected a list of field names."),
        ({"tracked_fields": [1]}, "tracked_fields is [1]; expected a list of field names."),
        ({"exclude_fields": "name"}, "exclude_fields is 'name'; expected a list of field names."),
        ({"masked_fields": "name"}, "masked_fields is 'name'; expected a list of field names."),
        ({"former_labels": "Client"}, "former_labels is 'Client'; expected a list of labels."),
        (
            {"capture": "triggers"},
            (
                "capture is 'triggers'; expected a Capture, such as Capture.TRIGGERS, or None for what the "
                "configuration says."
            ),
        ),
        ({"tracked_fields": []}, "tracked_fields is empty; name at least one field, or None for all of them."),
        ({"table_label": ""}, "table_label is ''; expected a name or None."),
        ({"table_label": 1}, "table_label is 1; expected a name or None."),
        ({"resource_id_field": 1}, "resource_id_field is 1; expected a name or None."),
        ({"user_id_field": ""}, "user_id_field is ''; expected a name or None."),
    ],
)
def test_an_argument_of_another_type_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    """What is no name, or no list of names, is refused where it is written, for classes and tables alike."""
    with pytest.raises(TrackingError) as caught:
        track_table(**arguments)
    with pytest.raises(TrackingError) as caught_too:
        track(_core_table(MetaData()), **arguments)

    assert str(caught.value) == str(caught_too.value) == message


@pytest.mark.parametrize("argument", ["tracked_fields", "exclude_fields", "masked_fields"])
def test_a_number_where_names_are_meant_is_refused(argument: str) -> None:
    """A number is refused as anything else that is no list of names, not by a TypeError from within."""
    arguments: dict[str, Any] = {argument: 5}

    with pytest.raises(TrackingError, match=f"{argument} is 5; expected a list of field names"):
        track_table(**arguments)


def test_a_label_that_the_trail_cannot_hold_is_refused() -> None:
    """A label that is longer than its column in the trail is refused where it is written."""
    with pytest.raises(TrackingError, match="100"):
        track_table(table_label="x" * 256)


@pytest.mark.parametrize("argument", ["tracked_fields", "masked_fields"])
def test_a_field_is_not_excluded_and_audited(argument: str) -> None:
    """A field that is named as both is refused."""
    arguments: dict[str, Any] = {argument: ["name", "email"], "exclude_fields": ["email"]}

    with pytest.raises(TrackingError, match="both name 'email'; leave it out of one of them"):
        track_table(**arguments)


def test_a_model_of_which_nothing_is_left_is_refused() -> None:
    """Whoever excludes every field would wait for changes that are never recorded."""
    cls = customer(new_base(), exclude_fields=["id", "name", "email", "password"])
    table = _core_table(MetaData())

    with pytest.raises(TrackingError, match="exclude_fields leaves nothing of the model Customer to audit"):
        resolved(cls)
    with pytest.raises(TrackingError, match="exclude_fields leaves nothing of the table"):
        track(table, exclude_fields=[column.key for column in table.columns])


def test_a_masked_key_is_refused() -> None:
    """What is shown by the resource id of every change can't be withheld."""
    cls = customer(new_base(), masked_fields=["id"])

    with pytest.raises(TrackingError, match="masked_fields names 'id' of customer, its key"):
        resolved(cls)


def test_a_masked_resource_id_is_refused() -> None:
    """A field that identifies the rows in the trail can't be withheld, either."""
    cls = customer(new_base(), masked_fields=["email"], resource_id_field="email")

    with pytest.raises(TrackingError, match="masked_fields names 'email' of customer, its key"):
        resolved(cls)


def test_a_table_without_a_primary_key_is_refused() -> None:
    """Rows that can't be told apart have no history."""
    with pytest.raises(TrackingError, match="The table t has no primary key"):
        track(Table("t", MetaData(), Column("a", Integer)))


def test_two_tables_with_one_label_are_refused() -> None:
    """The error names both tables and the argument that tells them apart."""
    metadata = MetaData()
    track(_core_table(metadata), table_label="Label")
    other = Table("other", metadata, Column("id", Integer, primary_key=True))

    with pytest.raises(TrackingError) as caught:
        track(other, table_label="Label")

    assert str(caught.value) == (
        "The tables model and other both have the label 'Label'; give one of them another with table_label=."
    )
    assert tracking_of(other) is None


def test_a_type_that_cannot_be_stored_exactly_is_refused() -> None:
    """The error names the column, its type, and the three things that can be done."""
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("blob", PickleType))

    with pytest.raises(UnsupportedTypeError) as caught:
        track(table)

    assert caught.value.column == "t.blob"
    assert caught.value.type == "PickleType()"
    assert "exclude_fields" in str(caught.value)
    assert "masked_fields" in str(caught.value)
    assert "to_trail" in str(caught.value)
    assert tracking_of(table) is None


@pytest.mark.parametrize("argument", ["exclude_fields", "masked_fields"])
def test_a_type_that_cannot_be_stored_is_no_matter_if_it_is_not_stored(argument: str) -> None:
    """A column whose values are left out or withheld may have any type."""
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("blob", PickleType))
    arguments: dict[str, Any] = {argument: ["blob"]}

    track(table, **arguments)

    assert tracking_of(table) is not None


def test_a_class_is_tracked_once() -> None:
    """A second decorator on one class is an error, not a second opinion."""
    cls = customer(new_base())

    with pytest.raises(TrackingError, match=r"Customer is tracked already; decorate it with @track_table\(\) once\.$"):
        track_table(["name"])(cls)


def test_the_decorator_needs_its_parentheses() -> None:
    """@track_table without parentheses says so, instead of replacing the class by a function."""
    decorate: Any = track_table

    with pytest.raises(TrackingError, match=r"write @track_table\(\), with parentheses\.$"):

        @decorate
        class Model:
            pass


def test_a_class_that_nothing_maps_is_refused() -> None:
    """A class without columns, metadata or mapper can't be audited; the error tells of imperative mapping."""
    with pytest.raises(TrackingError, match=r"Plain is not mapped.+ call track_table\(\.\.\.\)\(Plain\) after"):

        @track_table()
        class Plain:
            pass


def test_a_table_is_not_decorated() -> None:
    """A Core table given to the decorator is pointed to `track`."""
    table: Any = _core_table(MetaData())

    with pytest.raises(TrackingError, match=r"decorates classes, not .+; for a Core table use track\(\)\.$"):
        track_table()(table)


def test_a_class_is_not_tracked_as_a_table() -> None:
    """A class given to `track` is pointed to the decorator."""
    cls: Any = customer(new_base())

    with pytest.raises(TrackingError, match=r"decorate a class with @track_table\(\)\.$"):
        track(cls)


def test_a_declaration_that_fails_leaves_other_models_alone() -> None:
    """A misspelt field in one model is no error of another registry's."""
    wrong, right = customer(new_base(), tracked_fields=["nmae"]), customer(new_base())

    tracking = resolved(right)

    assert tracking is not None
    with pytest.raises(UnknownFieldError):
        resolved(wrong)


def test_a_computed_default_is_no_obstacle() -> None:
    """Columns with defaults of every kind are tracked as any other."""
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", Integer, server_default="1"),
        Column("b", Integer, default=lambda: dt.datetime.now(dt.UTC).year),
        Column("c", Integer, onupdate=func.now()),
    )

    tracking = tracking_of(track(table))

    assert tracking is not None
    assert tracking.fields == ("id", "a", "b", "c")
