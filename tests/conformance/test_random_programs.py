# ruff: noqa: D103 (the steps of a program are named after what they do)
"""
Laws 2, 3 and 7: random programs of ORM operations leave the trail that the witness saw.

``SQLAUDIT_PROGRAMS=1000`` runs so many programs on each database.
"""

import asyncio
import copy
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, note, settings, strategies as st
from sqlalchemy import URL, ForeignKey
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SAWarning
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column, relationship
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import StaleDataError

from conformance_setup import (
    assert_same_by_row,
    changes_by_row,
    start_audit,
    truth_by_row,
)
from databases import Database, mariadb_database, postgresql_database, sqlite_database
from sqlaudit import track_table
from witness import Story

_touches = itertools.count(1)


class Base(DeclarativeBase):
    pass


@track_table()
class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(default="unnamed")
    quantity: Mapped[int | None] = mapped_column(server_default="7")
    remark: Mapped[str | None] = mapped_column(deferred=True)
    plain: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    mutable: Mapped[Any] = mapped_column(MutableDict.as_mutable(sa.JSON(none_as_null=True)), nullable=True)
    touched: Mapped[int] = mapped_column(default=0, onupdate=lambda: next(_touches))
    counted: Mapped[int] = mapped_column(default=0, onupdate=sa.text("counted + 1"))
    double: Mapped[int | None] = mapped_column(sa.Computed("quantity * 2", persisted=True))
    version: Mapped[int] = mapped_column()
    lines: Mapped[list["Line"]] = relationship(back_populates="order", cascade="all, delete-orphan")
    notes: Mapped[list["Note"]] = relationship(back_populates="order")
    __mapper_args__ = {"version_id_col": version}


@track_table()
class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("order.id"))
    text: Mapped[str | None]
    kind: Mapped[str] = mapped_column(default=sa.text("'k'"))
    order: Mapped[Order | None] = relationship(back_populates="lines")


@track_table()
class Note(Base):
    __tablename__ = "note"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "note"}
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    order_id: Mapped[int | None] = mapped_column(ForeignKey("order.id"))
    text: Mapped[str | None]
    order: Mapped[Order | None] = relationship(back_populates="notes")


class Warning_(Note):  # noqa: N801 (Warning is a builtin)
    __tablename__ = "warning"
    __mapper_args__ = {"polymorphic_identity": "warning"}
    id: Mapped[int] = mapped_column(ForeignKey("note.id"), primary_key=True)
    level: Mapped[int | None]
    details: Mapped[Any] = mapped_column(sa.JSON, nullable=True)


MODELS = (Order, Line, Note, Warning_)


# --- what a program does ---------------------------------------------------------------------------------------------


@dataclass
class World:
    """A session and the objects that the program has made in it."""

    session: Session
    objects: list[Any] = field(default_factory=list)
    savepoints: list[SessionTransaction] = field(default_factory=list)

    def living(self, kind: type[Any]) -> list[Any]:
        """Return the objects of a kind that are rows, and shall stay."""
        return [
            each
            for each in self.objects
            if isinstance(each, kind) and sa.inspect(each).persistent and each not in self.session.deleted
        ]

    def pick(self, kind: type[Any], number: int) -> Any:
        """Return one of them."""
        living = self.living(kind)
        return living[number % len(living)] if living else None

    def add(self, *objects: Any) -> None:
        self.objects.extend(objects)
        self.session.add_all(objects)


Step = Callable[[World, int, Any], None]


def add_order(world: World, number: int, value: Any) -> None:
    lines = [Line(text=f"line {index}") for index in range(number % 3)]
    warning = Warning_(text="n", level=number, details=value)
    order = Order(name=f"order {number}", plain=value, mutable={"n": number}, lines=lines, notes=[warning])
    world.add(order, *lines, warning)


def add_bare_order(world: World, number: int, value: Any) -> None:
    world.add(Order())


def add_order_by_expression(world: World, number: int, value: Any) -> None:
    world.add(Order(quantity=sa.literal(number) + 1))


def set_columns(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        order.name = None if number % 5 == 0 else f"name {number % 3}"
        if number % 2:
            order.quantity = number % 4


def set_deferred(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        order.remark = f"remark {number % 2}"


def set_expression(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        order.quantity = Order.quantity + number % 2


def set_document(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        order.plain = value
        order.mutable = {"v": value}


def set_null_documents(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        order.plain = sa.null() if number % 2 else sa.JSON.NULL


def change_document_in_place(world: World, number: int, value: Any) -> None:
    order = world.pick(Order, number)
    if order and isinstance(order.plain, dict):
        order.plain["in place"] = value
        if number % 3 == 0:
            flag_modified(order, "plain")
        elif number % 3 == 1:
            order.plain = dict(order.plain, copied=number % 2)


def change_mutable(world: World, number: int, value: Any) -> None:
    order = world.pick(Order, number)
    if order and order.mutable is not None:
        order.mutable["m"] = value


def set_note(world: World, number: int, value: Any) -> None:
    if (warning := world.pick(Warning_, number)) is not None:
        if number % 3:
            warning.level = number % 4
        if number % 2:
            warning.text = f"text {number % 3}"
        if number % 5 == 0:
            warning.details = value


def add_line(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        line = Line(text="added")
        order.lines.append(line)
        world.add(line)


def remove_line(world: World, number: int, value: Any) -> None:
    order = world.pick(Order, number)
    if order and order.lines:
        order.lines.pop(number % len(order.lines))


def unset_parent(world: World, number: int, value: Any) -> None:
    if (line := world.pick(Line, number)) and line.order:
        line.text = "pending"
        # A parent that doesn't know its child can't make an orphan of it.
        line.order.lines  # noqa: B018
        line.order = None


def move_line(world: World, number: int, value: Any) -> None:
    line, order = world.pick(Line, number), world.pick(Order, number // 2)
    if line and order:
        line.order = order


def move_note(world: World, number: int, value: Any) -> None:
    note_, order = world.pick(Note, number), world.pick(Order, number // 2)
    if note_ and order:
        note_.order = order if number % 3 else None


def delete_order(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        if number % 2:
            order.name = "pending"
        world.session.delete(order)


def delete_note(world: World, number: int, value: Any) -> None:
    if note_ := world.pick(Note, number):
        world.session.delete(note_)


def switch_row(world: World, number: int, value: Any) -> None:
    # A flush here, not between the two.
    world.session.flush()
    if line := world.pick(Line, number):
        identity, parent = line.id, line.order_id
        world.session.delete(line)
        switched = Line(id=identity, order_id=parent)
        if number % 2:
            switched.text = "switched"
        world.add(switched)


def add_and_delete(world: World, number: int, value: Any) -> None:
    order = Order(name="short-lived", plain=value)
    world.session.add(order)
    world.session.flush()
    world.session.delete(order)


def merge(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        world.session.flush()
        world.session.merge(Order(id=sa.inspect(order).identity[0], name=f"merged {number % 2}", plain=value))


def expire(world: World, number: int, value: Any) -> None:
    world.session.flush()
    if order := world.pick(Order, number):
        world.session.expire(order, ["name", "plain"] if number % 2 else None)


def expire_all(world: World, number: int, value: Any) -> None:
    world.session.flush()
    world.session.expire_all()


def refresh(world: World, number: int, value: Any) -> None:
    world.session.flush()
    if order := world.pick(Order, number):
        world.session.refresh(order)


def query(world: World, number: int, value: Any) -> None:
    world.session.scalars(sa.select(Order if number % 2 else Note)).all()


def flush(world: World, number: int, value: Any) -> None:
    world.session.flush()


def commit(world: World, number: int, value: Any) -> None:
    world.savepoints.clear()
    world.session.commit()


def roll_back(world: World, number: int, value: Any) -> None:
    world.savepoints.clear()
    world.session.rollback()


def begin_savepoint(world: World, number: int, value: Any) -> None:
    world.savepoints.append(world.session.begin_nested())


def end_savepoint(world: World, number: int, value: Any) -> None:
    if world.savepoints:
        savepoint = world.savepoints.pop()
        if number % 2:
            savepoint.commit()
        else:
            savepoint.rollback()


def execute(world: World, statement: Any, parameters: Any = None) -> None:
    """Execute what the objects don't know of, and let them forget what they knew."""
    world.session.flush()
    world.session.execute(statement, parameters, execution_options={"synchronize_session": False})
    world.session.expire_all()


def update_orders(world: World, number: int, value: Any) -> None:
    execute(
        world,
        sa.update(Order)
        .where(Order.id % 2 == number % 2)
        .values(name=Order.name + "!", quantity=number % 4, version=Order.version + 1),
    )


def update_from_lines(world: World, number: int, value: Any) -> None:
    execute(
        world, sa.update(Order).where(Line.order_id == Order.id, Line.text == "added").values(remark=f"r{number % 2}")
    )


def update_by_key(world: World, number: int, value: Any) -> None:
    lines = world.living(Line)
    world.session.flush()
    keys = [sa.inspect(line).identity[0] for line in lines if sa.inspect(line).identity]
    if keys:
        execute(world, sa.update(Line), [{"id": key, "text": f"by key {number % 3}"} for key in keys])


def delete_lines(world: World, number: int, value: Any) -> None:
    execute(world, sa.delete(Line).where(Line.id % 3 == number % 3))
    world.session.expunge_all()
    world.objects.clear()
    world.objects.extend(world.session.scalars(sa.select(Order)).all())


def insert_lines(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        world.session.flush()
        key = sa.inspect(order).identity[0]
        row = {"order_id": key, "text": f"inserted {number}"}
        match number % 5:
            case 0:
                execute(world, sa.insert(Line).values(row))
            case 1:
                execute(world, sa.insert(Line), [row, row])
            case 2:
                execute(world, sa.insert(Line).values([row, row]))
            case 3:
                some = sa.select(Order.id, Order.name, sa.literal("s")).where(Order.id == key)
                execute(world, sa.insert(Line).from_select(["order_id", "text", "kind"], some))
            case _:
                world.session.bulk_insert_mappings(Line, [row, {**row, "kind": "b"}])


def upsert_lines(world: World, number: int, value: Any) -> None:
    if order := world.pick(Order, number):
        world.session.flush()
        dialects: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mysql}
        insert = dialects[world.session.get_bind().dialect.name].insert
        key = sa.inspect(order).identity[0]
        rows = [{"id": 1000 + n, "order_id": key, "text": f"upsert {number % 2}", "kind": "u"} for n in (0, number % 3)]
        statement = insert(Line)
        if isinstance(statement, mysql.Insert):
            upsert = statement.on_duplicate_key_update(text=statement.inserted.text)
        else:
            upsert = statement.on_conflict_do_update(index_elements=["id"], set_={"text": statement.excluded.text})
        # A statement meets each row once, or PostgreSQL refuses it.
        execute(world, upsert, rows[: 1 + bool(number % 3)])


STEPS: list[Step] = [
    update_orders, update_from_lines, update_by_key, delete_lines, insert_lines, insert_lines, upsert_lines,
    add_order, add_bare_order, add_order_by_expression, set_columns, set_columns, set_deferred, set_expression,
    set_document, set_null_documents, change_document_in_place, change_mutable, set_note, set_note, add_line,
    remove_line, unset_parent, move_line, move_note, delete_order, delete_note, switch_row, add_and_delete, merge,
    expire, expire_all, refresh, query, flush, flush, commit, commit, roll_back, begin_savepoint, end_savepoint,
]  # fmt: skip

# None of them is another one for Python, which finds 0 and False equal: the witness compares so.
values = st.sampled_from([None, {}, [], {"a": 1}, {"a": {"b": [1, 2]}}, [1, None], "text", 2, False])
programs = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30), values), min_size=1, max_size=25)
Program = list[tuple[Step, int, Any]]


# --- what is asked of its trail --------------------------------------------------------------------------------------


def run(session: Session, program: Program) -> None:
    """Run *program* on a session with some rows, and commit."""
    world = World(session)
    add_order(world, 1, {"a": 1})
    add_order(world, 2, None)
    session.commit()
    with warnings.catch_warnings():
        # A random program does what SQLAlchemy warns of; what counts is what it writes.
        warnings.simplefilter("ignore", SAWarning)
        for step, number, value in [*program, (commit, 0, None)]:
            try:
                # Hypothesis would mutate its own values with us.
                step(world, number, copy.deepcopy(value))
            except (IntegrityError, StaleDataError):
                # What the program asked for can't be; it begins anew, as an application would.
                roll_back(world, 0, None)


def replayed(stories: dict[Any, Story]) -> dict[Any, dict[str, Any]]:
    """Return the rows that are left; fail unless every old value is the new value before it."""
    rows: dict[Any, dict[str, Any]] = {}
    for key, story in stories.items():
        for operation, fields in story:
            row = rows.setdefault(key, {})
            assert bool(row) == (operation != "insert")
            for name, (old, _) in fields.items():
                assert row.get(name) == old
            row.update({name: new for name, (_, new) in fields.items()})
            if operation == "delete":
                del rows[key]
    return rows


def as_python_sees_it(stories: dict[Any, Story]) -> dict[Any, Story]:
    """Leave out what went from SQL NULL to the JSON value null, or back: both are None for the witness."""
    return {key: _differences(story) for key, story in stories.items()}


def _differences(story: Story) -> Story:
    seen: Story = []
    for operation, fields in story:
        if operation == "update":
            fields = {name: pair for name, pair in fields.items() if pair != (None, None)}  # noqa: PLW2901
        if fields:
            seen.append((operation, fields))
    return seen


async def check(database: Database, program: Program) -> None:
    """Run *program* on an empty database; its trail equals the witness, chains, and replays to the tables."""
    engine = database.make_async_engine()
    try:
        maker = async_sessionmaker(engine)
        await start_audit(maker, Base)

        async with maker() as session:
            await session.run_sync(run, program)

        for model in MODELS:
            trail = as_python_sees_it(await changes_by_row(maker, model))
            assert_same_by_row(trail, await truth_by_row(maker, model), model.__name__)
            async with maker() as session:
                table = model.__table__
                rows = [dict(row) for row in (await session.execute(sa.select(table))).mappings()]
            assert replayed(trail) == {row["id"]: row for row in rows}
    finally:
        await engine.dispose()


def _noted(program: Program) -> None:
    for step, number, value in program:
        note(f"{step.__name__}(world, {number}, {value!r})")


_settings = settings(
    max_examples=int(os.environ.get("SQLAUDIT_PROGRAMS", "15")),
    derandomize=False,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@_settings
@given(programs)
def test_random_programs_are_told_on_sqlite(program: Program) -> None:
    """Whatever a program does on SQLite, its trail is what the witness saw."""
    _noted(program)

    with tempfile.TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        asyncio.run(check(database, program))


@_settings
@given(program=programs)
def test_random_programs_are_told_on_postgresql(postgresql_server: URL, program: Program) -> None:
    """Whatever a program does on PostgreSQL, its trail is what the witness saw."""
    _noted(program)

    with postgresql_database(postgresql_server) as database:
        asyncio.run(check(database, program))


@_settings
@given(program=programs)
def test_random_programs_are_told_on_mariadb(mariadb_server: URL, program: Program) -> None:
    """Whatever a program does on MariaDB, its trail is what the witness saw."""
    _noted(program)

    with mariadb_database(mariadb_server) as database:
        asyncio.run(check(database, program))


EXAMPLES: dict[str, Program] = {
    "rollback of an orphan": [(remove_line, 1, None), (flush, 0, None), (roll_back, 0, None), (set_columns, 1, None)],
    "savepoint of a row switch": [
        (begin_savepoint, 0, None),
        (switch_row, 1, None),
        (end_savepoint, 0, None),
        (set_columns, 3, None),
    ],
}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_programs_that_are_known_are_told(database: Database, name: str) -> None:
    """Programs that are worth being run each time leave the trail that the witness saw."""
    await check(database, EXAMPLES[name])
