"""The lives of rows with columns of given types: what the trail tells of them, and what was read between the writes."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pprint import pformat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column

from conformance_setup import Maker, capture_of_tests, changes_of
from sqlaudit import SQLAuditConfig, create_audit_tables, register_hooks, set_config, track_table
from type_cases import TypeCase, typed

MOMENTS = 5
"""How many values a column of a row has in its life."""

Life = Sequence[Any]
"""The values of one column of one row, one after the other."""


class _JSONNull:
    """What is in a JSON column that isn't NULL, and yet read as None."""

    def __repr__(self) -> str:
        return "the JSON value null"


JSON_NULL = _JSONNull()


@dataclass(frozen=True, slots=True, repr=False)
class Subject:
    """An audited table with a column of each of the types that are tested, named c0, c1 and so on."""

    cases: Sequence[TypeCase]
    maker: Maker
    model: Any
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def columns(self) -> Mapping[str, TypeCase]:
        """The cases by the name of their columns."""
        return {f"c{number}": case for number, case in enumerate(self.cases)}


async def audited(cases: Sequence[TypeCase], maker: Maker) -> Subject:
    """Create an audited table with a column for each of *cases*."""

    class Base(DeclarativeBase):
        pass

    columns = {f"c{number}": mapped_column(case.make(), nullable=True) for number, case in enumerate(cases)}
    thing = type(
        "Thing",
        (Base,),
        {"__tablename__": "thing", "id": mapped_column(sa.Integer, primary_key=True), **columns},
    )
    track_table()(thing)
    set_config(SQLAuditConfig(session_factory=maker, capture=capture_of_tests()))
    register_hooks(maker)
    async with maker.kw["bind"].begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await create_audit_tables(connection, metadata=Base.metadata)
    return Subject(cases, maker, thing)


def lives_of_edges(cases: Sequence[TypeCase]) -> list[list[Life]]:
    """Return rows in which each of the edges, and NULL, comes at each moment of a life, before and after others."""
    length = max(len(case.all_edges) for case in cases)

    def life(edges: Sequence[Any], start: int) -> Life:
        return [edges[(start + step * (step + 1) // 2) % len(edges)] for step in range(MOMENTS)]

    return [[life(case.all_edges, start) for case in cases] for start in range(length)]


async def check(subject: Subject, rows: Sequence[Sequence[Life]]) -> None:
    """Fail unless the trail tells of *rows*, in which each column has a life, what was read from the table."""
    moments = await _live(subject, rows)
    ids = list(moments[0])
    told: dict[tuple[int, str], list[Any]] = {(key, name): [] for key in ids for name in subject.columns}
    for change in await changes_of(subject.maker, subject.model, ids):
        if change.field_name != "id":
            story = told[change.resource_id, change.field_name]
            story.append((change.operation.value, change.old_value, change.new_value))
    stored = await _stored(subject, ids)

    wrong: dict[str, tuple[list[Any], list[Any]]] = {}
    for (key, name), story in told.items():
        case = subject.columns[name]
        truth = list(_truth(case, [moment[key][name] for moment in moments]))
        without_marks = [(operation, _without_mark(old), _without_mark(new)) for operation, old, new in truth]
        if _typed(case, story) != _typed(case, without_marks):
            wrong.setdefault(case.name, (story, without_marks))
        nulls = [(_kind(old, JSON_NULL), _kind(new, JSON_NULL)) for _, old, new in truth]
        if stored[key, name] != nulls:
            wrong.setdefault(case.name, (stored[key, name], nulls))
    if wrong:
        raise AssertionError(
            "\n\n".join(
                f"Of a column of {name} the trail tells\n{pformat(story)}\nthe table held\n{pformat(truth)}"
                for name, (story, truth) in wrong.items()
            )
        )


async def _live(subject: Subject, rows: Sequence[Sequence[Life]]) -> list[dict[int, dict[str, Any]]]:
    """Let *rows* live; return what was read of them, by id and column, between the writes."""
    model = subject.model
    lives = {next(subject.ids): dict(zip(subject.columns, row, strict=True)) for row in rows}
    ids = list(lives)
    moments: list[dict[int, dict[str, Any]]] = []

    def at(key: int, moment: int) -> dict[str, Any]:
        return {name: life[moment] for name, life in lives[key].items()}

    async with subject.maker(expire_on_commit=False) as session:

        async def assign(moment: int) -> None:
            for key, thing in things.items():
                for name, value in at(key, moment).items():
                    setattr(thing, name, value)
            await session.commit()
            moments.append(await _read(subject, ids))

        things = {key: model(id=key) for key in ids}
        session.add_all(things.values())
        await assign(0)
        # The old values are those that were given, in memory.
        await assign(1)
        # Nobody has the old values.
        session.expire_all()
        await assign(2)
        # The old values are those that were read.
        await session.scalars(sa.select(model).where(model.id.in_(ids)), execution_options={"populate_existing": True})
        await assign(3)

        for key in ids[::2]:
            await session.execute(sa.update(model).where(model.id == key).values(at(key, 4)))
        if ids[1::2]:
            await session.execute(sa.update(model), [{"id": key, **at(key, 4)} for key in ids[1::2]])
        await session.commit()
        moments.append(await _read(subject, ids))

        for key in ids[::2]:
            await session.delete(things[key])
        await session.commit()
        await session.execute(sa.delete(model).where(model.id.in_(ids[1::2])))
        await session.commit()
    return moments


async def _read(subject: Subject, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the rows as a Core SELECT reads them, by id."""
    table = subject.model.__table__
    documents = [name for name in subject.columns if isinstance(table.c[name].type, sa.JSON)]
    nulls = [table.c[name].is_(None).label(f"{name}_is_null") for name in documents]
    async with subject.maker() as session:
        query = sa.select(table, *nulls).where(table.c.id.in_(ids))
        rows = {row["id"]: dict(row) for row in (await session.execute(query)).mappings()}
    for row in rows.values():
        for name in documents:
            if row[name] is None and not row[f"{name}_is_null"]:
                row[name] = JSON_NULL
    return rows


def _truth(case: TypeCase, values: list[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the story of a column of a row that had *values*, one after the other."""
    yield "insert", None, values[0]
    for old, new in itertools.pairwise(values):
        if typed(case.compared(old)) != typed(case.compared(new)):
            yield "update", old, new
    yield "delete", values[-1], None


def _typed(case: TypeCase, story: Sequence[tuple[str, Any, Any]]) -> list[Any]:
    return [(operation, typed(case.compared(old)), typed(case.compared(new))) for operation, old, new in story]


def _without_mark(value: Any) -> Any:
    return None if value is JSON_NULL else value


def _kind(value: Any, json_null: Any) -> str:
    if value is None:
        return "NULL"
    return "the JSON value null" if value == json_null else "a value"


async def _stored(subject: Subject, ids: Sequence[int]) -> dict[tuple[int, str], list[Any]]:
    """Return which values are stored as nulls, read by plain SQL; fail unless all is plain JSON."""
    query = sa.text(
        "SELECT resource_id, old_values, new_values FROM sqlaudit_change "
        f"WHERE resource_id IN ({', '.join(repr(str(each)) for each in ids)}) ORDER BY id"
    )
    stored: dict[tuple[int, str], list[Any]] = {(key, name): [] for key in ids for name in subject.columns}
    async with subject.maker() as session:
        for key, *sides in await session.execute(query):
            old, new = (_parsed(side) if isinstance(side, str) else side or {} for side in sides)
            for name in subject.columns:
                if name in old or name in new:
                    stored[int(key), name].append(tuple(_kind(side.get(name), {"$json": None}) for side in (old, new)))
    return stored


def _parsed(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
