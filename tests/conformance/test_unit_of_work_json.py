"""Laws 2 and 3: documents, which can change in place, are told as the witness saw them."""

import datetime as dt
import json
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from conformance_setup import Maker, read_rows, save, start_audit, stored_changes, story_of
from databases import Database
from sqlaudit import track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    plain: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    mutable: Mapped[Any] = mapped_column(MutableDict.as_mutable(sa.JSON), nullable=True)
    parts: Mapped[Any] = mapped_column(MutableList.as_mutable(sa.JSON), nullable=True)


async def test_mutable_dict_in_place_tells_old_and_new(maker: Maker) -> None:
    """A MutableDict that is changed in place, twice in one transaction, is told with both states each time."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(mutable={"a": 1})
        await save(session, item)
        await session.refresh(item)
        item.mutable["b"] = 2
        await session.flush()
        item.mutable["b"] = 3
        item.mutable.pop("a")
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"mutable": ({"a": 1}, {"a": 1, "b": 2})}),
        ("update", {"mutable": ({"a": 1, "b": 2}, {"b": 3})}),
    ]


async def test_mutable_list_in_place_tells_old_and_new(maker: Maker) -> None:
    """A MutableList that is changed in place is told with both states; its order counts."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(parts=[1, 2])
        await save(session, item)
        await session.refresh(item)
        item.parts.append(3)
        await session.commit()
        await session.refresh(item)
        item.parts.reverse()
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"parts": ([1, 2], [1, 2, 3])}),
        ("update", {"parts": ([1, 2, 3], [3, 2, 1])}),
    ]


async def test_mutable_changed_and_changed_back_tells_nothing(maker: Maker) -> None:
    """A document that was changed in place and back again leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(mutable={"a": 1})
        await save(session, item)
        await session.refresh(item)
        item.mutable["b"] = 2
        del item.mutable["b"]
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


async def test_flagged_documents_tell_old_and_new(maker: Maker) -> None:
    """A plain document that is changed deep inside and flagged is told with what the database held."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": {"b": [1]}})
        await save(session, item)
        await session.refresh(item)
        item.plain["a"]["b"].append(2)
        flag_modified(item, "plain")
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"plain": ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}})})]


async def test_flagged_documents_that_are_the_same_tell_nothing(maker: Maker) -> None:
    """A document that is flagged as modified and isn't leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": 1})
        await save(session, item)
        await session.refresh(item)
        flag_modified(item, "plain")
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


async def test_reassigned_copies_of_changed_documents_tell_what_the_database_held(maker: Maker) -> None:
    """A document that was changed in place and assigned again as a copy is told with the database's old one."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": {"b": 1}, "c": 1})
        await save(session, item)
        await session.refresh(item)
        item.plain["a"]["b"] = 2
        item.plain = dict(item.plain, c=2)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"plain": ({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}, "c": 2})})
    ]


async def test_changes_in_place_that_were_not_sent_are_not_told(maker: Maker) -> None:
    """A plain document that is changed in place beside another column isn't told: no UPDATE wrote it."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", plain={"a": 1})
        await save(session, item)
        await session.refresh(item)
        item.plain["a"] = 2
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b")})]


async def test_deleted_documents_that_were_changed_in_place_tell_what_the_database_held(maker: Maker) -> None:
    """The delete of an object whose documents were changed in place, unflushed, is told with the database's."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": 1}, mutable={"b": 1}, parts=[1])
        await save(session, item)
        await session.refresh(item)
        item.plain["a"] = 2
        item.mutable["b"] = 2
        item.parts.append(2)
        await session.delete(item)
        await session.commit()

    [_, (operation, fields)] = await story_of(maker, Item)
    assert operation == "delete"
    assert fields["plain"] == ({"a": 1}, None)
    assert fields["mutable"] == ({"b": 1}, None)
    assert fields["parts"] == ([1], None)


async def test_inserted_documents_are_told_as_they_were_sent(maker: Maker) -> None:
    """A document that goes on changing after its INSERT is told as it was inserted."""
    await start_audit(maker, Base)

    async with maker() as session:
        document: dict[str, Any] = {"a": 1}
        session.add(Item(plain=document))
        await session.flush()
        document["a"] = 2
        await session.commit()

    assert [fields["plain"] for _, fields in await story_of(maker, Item)] == [(None, {"a": 1})]


async def test_expired_documents_tell_what_the_database_held(maker: Maker) -> None:
    """The old document of an expired object is the database's."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": 1}, mutable={"b": 1})
        await save(session, item)
        item.plain = {"a": 2}
        item.mutable = {"b": 2}
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"plain": ({"a": 1}, {"a": 2}), "mutable": ({"b": 1}, {"b": 2})})
    ]


async def test_documents_with_other_key_order_tell_nothing(maker: Maker) -> None:
    """The order of keys is no part of a document."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": 1, "b": 2})
        await save(session, item)
        item.plain = {"b": 2, "a": 1}
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [({"a": 1}, {"a": True}), ({"a": 0}, {"a": False}), ({"a": 1}, {"a": 1.0}), ([1], [True]), ({}, []), ({}, None)],
)
async def test_documents_that_python_takes_for_equal_are_told(maker: Maker, old: Any, new: Any) -> None:
    """A number that becomes true, or a fraction, changes the document though Python finds them equal."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain=old)
        await save(session, item)
        item.plain = new
        await session.commit()

    [_, (operation, _, before, after)] = await stored_changes(maker, "Item")
    assert operation == "update"
    assert json.dumps(before) == json.dumps({"plain": old})
    assert json.dumps(after) == json.dumps({"plain": {"$json": None} if new is None else new})


@track_table()
class Nullable(Base):
    __tablename__ = "nullable"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    plain: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    as_null: Mapped[Any] = mapped_column(sa.JSON(none_as_null=True), nullable=True)
    binary: Mapped[Any] = mapped_column(sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True)


async def _is_null(maker: Maker, column: str) -> list[bool]:
    rows = await read_rows(maker, f"SELECT {column} IS NULL FROM nullable ORDER BY id")
    return [bool(value) for (value,) in rows]


@pytest.mark.parametrize(
    ("given", "is_null"),
    [
        ({}, True),
        ({"plain": None}, False),
        ({"plain": sa.JSON.NULL}, False),
        ({"plain": sa.null()}, True),
    ],
    ids=["unset", "None", "JSON.NULL", "null()"],
)
async def test_inserted_json_null_and_sql_null_are_told_apart(
    maker: Maker, given: dict[str, Any], is_null: bool
) -> None:
    """The JSON value null and SQL NULL, which Python both calls None, are stored apart, as the row has them."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Nullable(**given))

    [(_, _, _, new)] = await stored_changes(maker, "Nullable")
    assert await _is_null(maker, "plain") == [is_null]
    assert new["plain"] == (None if is_null else {"$json": None})


@pytest.mark.parametrize("given", [None, sa.null(), sa.JSON.NULL], ids=["None", "null()", "JSON.NULL"])
async def test_none_as_null_is_told_as_the_row_has_it(maker: Maker, given: Any) -> None:
    """With none_as_null, None is SQL NULL, and JSON.NULL the JSON value null."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Nullable(as_null=given))

    [(_, _, _, new)] = await stored_changes(maker, "Nullable")
    [is_null] = await _is_null(maker, "as_null")
    assert is_null == (given is not sa.JSON.NULL)
    assert new["as_null"] == (None if is_null else {"$json": None})


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("column", ["plain", "binary"])
async def test_updates_between_json_null_and_sql_null_are_told(maker: Maker, column: str, expired: bool) -> None:
    """Going from SQL NULL to the JSON value null and back is a change each, though both are None."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Nullable(name="a")
        await save(session, item)
        for value in ({"a": 1}, None, sa.null(), sa.JSON.NULL, sa.null()):
            if not expired:
                await session.refresh(item)
            setattr(item, column, value)
            flag_modified(item, column)
            await session.commit()

    null: Any = {"$json": None}
    assert [(old, new) for operation, _, old, new in await stored_changes(maker, "Nullable")][1:] == [
        ({column: None}, {column: {"a": 1}}),
        ({column: {"a": 1}}, {column: null}),
        ({column: null}, {column: None}),
        ({column: None}, {column: null}),
        ({column: null}, {column: None}),
    ]


@pytest.mark.parametrize("loaded", [False, True])
async def test_deleted_json_null_and_sql_null_are_told_apart(maker: Maker, loaded: bool) -> None:
    """The delete of a row tells which of its documents were null, and which were NULL."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Nullable(plain=None, binary=sa.null(), as_null=None)
        await save(session, item)
        if loaded:
            await session.refresh(item)
        await session.delete(item)
        await session.commit()

    [_, (_, _, old, new)] = await stored_changes(maker, "Nullable")
    assert old == {"id": 1, "name": None, "plain": {"$json": None}, "binary": None, "as_null": None}
    assert new is None


async def test_documents_that_look_like_our_marks_are_told(maker: Maker) -> None:
    """A document of the user's with the keys that the trail uses for its marks is told as it is."""
    documents = [{"$json": None}, {"$json": {"$json": 1}}, {"$masked": True}, {"$other": 1, "x": 2}]
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, *(Item(plain=document) for document in documents))

    assert [fields["plain"][1] for _, fields in await story_of(maker, Item)] == documents


async def test_documents_with_keys_that_are_no_text_are_told(maker: Maker) -> None:
    """Keys that JSON makes text of, of several types in one document, are told as the row has them."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={1: "a", "b": 2, None: 3})
        await save(session, item)
        item.plain = {1: "a", "b": 3, None: 3}
        await session.commit()
        item.plain = {"1": "a", "b": 3, "null": 3}
        await session.commit()

    [(_, inserted), (_, updated)] = await story_of(maker, Item)
    assert inserted["plain"] == (None, {"1": "a", "b": 2, "null": 3})
    assert updated["plain"] == ({"1": "a", "b": 2, "null": 3}, {"1": "a", "b": 3, "null": 3})


async def test_tuples_in_documents_are_told_as_lists(maker: Maker) -> None:
    """A tuple is a list in JSON; one that becomes the equal list tells nothing."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(plain={"a": (1, 2)})
        await save(session, item)
        item.plain = {"a": [1, 2]}
        await session.commit()

    assert [fields["plain"] for _, fields in await story_of(maker, Item)] == [(None, {"a": [1, 2]})]


async def test_documents_of_an_own_serializer_are_told(database: Database) -> None:
    """Values that only the engine's own JSON serializer can write are told as the row has them."""
    engine = database.make_async_engine(json_serializer=lambda value: json.dumps(value, default=str))
    maker = async_sessionmaker(engine)
    try:
        await start_audit(maker, Base)

        async with maker() as session:
            item = Item(plain={"at": dt.date(2020, 1, 1)})
            await save(session, item)
            item.plain = {"at": dt.date(2021, 1, 1)}
            await session.commit()
            item.plain = {"at": "2021-01-01"}
            await session.commit()

        story = await story_of(maker, Item)
    finally:
        await engine.dispose()
    assert story[0][1]["plain"] == (None, {"at": "2020-01-01"})
    assert story[1:] == [("update", {"plain": ({"at": "2020-01-01"}, {"at": "2021-01-01"})})]


async def test_documents_in_binary_json_are_told(maker: Maker) -> None:
    """A document that PostgreSQL keeps as jsonb, where 1e2 is 100, is told as the row has it."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Nullable(binary={"big": 1e20, "ü": "✓", "": []})
        await save(session, item)
        item.binary = {"big": 1e20, "ü": "✓", "": []}
        await session.commit()

    assert len(await story_of(maker, Nullable)) == 1
