"""Questions to the trail as a whole: filters, pages, streams, counts, compared with the stored rows in plain Python."""

import contextlib
import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import shop
from databases import Database
from observing import StoredChange, read_trail, sent_statements
from shop import Customer, Item, Order, Tag, make_history
from sqlaudit import (
    MASKED,
    Change,
    Operation,
    SQLAuditConfig,
    audit_context,
    count_changes,
    count_changes_by,
    count_changes_by_sync,
    count_changes_sync,
    get_changes,
    get_changes_sync,
    get_config,
    register_hooks,
    select_changes,
    set_config,
    stream_changes,
    stream_changes_sync,
)
from sqlaudit.exceptions import RetrievalError, UnknownFieldError, UntrackedError

NEW_YEAR = dt.datetime.fromisoformat("2026-01-01")
KYIV = ZoneInfo("Europe/Kyiv")
NOON = dt.datetime(2026, 1, 1, 9, tzinfo=dt.UTC)
KYIV_NOON = dt.datetime(2026, 1, 1, 12, tzinfo=KYIV)
KEYS = {"status": "state"}
"""Column keys of the attributes that are called otherwise."""


@pytest.fixture(name="sync_engine")
def _sync_engine(database: Database) -> Iterator[Engine]:
    engine = database.make_engine()
    yield engine
    engine.dispose()


@pytest.fixture(name="session")
def _session(sync_engine: Engine) -> Iterator[Session]:
    """Give a session of a shop with a history, and nothing done yet."""
    maker = sessionmaker(sync_engine)
    set_config(
        SQLAuditConfig(
            session_factory=maker, user_model=shop.User, user_model_user_id_field="id", time_zone="Europe/Kyiv"
        )
    )
    register_hooks(maker)
    shop.Base.metadata.create_all(sync_engine)
    with maker() as session:
        make_history(session)
    with maker() as session:
        yield session


@pytest.fixture(name="stored")
def _stored(session: Session, sync_engine: Engine) -> list[StoredChange]:
    with sync_engine.connect() as connection:
        return read_trail(connection)


@pytest.fixture(name="shop_maker")
async def _shop_maker(engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]) -> async_sessionmaker[AsyncSession]:
    set_config(SQLAuditConfig(session_factory=maker, time_zone="Europe/Kyiv"))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(shop.Base.metadata.create_all)
    return maker


# --- the same filter in plain Python ---------------------------------------------------------------------------------


def stored_form(value: Any) -> Any:
    """Return a value of the shop as the trail holds it."""
    match value:
        case sa.sql.elements.Null():
            return None
        case Decimal():
            return str(value)
        case dt.datetime():
            return value.isoformat(timespec="microseconds")
        case dict() if any(key.startswith("$") for key in value):
            return {"$json": value}
    return value


def same(stored: Any, value: Any) -> bool:
    """Compare JSON values: numbers by value, which true is not."""
    if isinstance(stored, bool) or isinstance(value, bool):
        return stored is value
    if isinstance(stored, list) and isinstance(value, list):
        return len(stored) == len(value) and all(map(same, stored, value))
    if isinstance(stored, dict) and isinstance(value, dict):
        return stored.keys() == value.keys() and all(same(stored[key], value[key]) for key in value)
    return bool(stored == value)


def has(side: dict[str, Any] | None, name: str, value: Any) -> bool:
    """Say whether a side of a stored change has a value, given as one of the model's."""
    key = KEYS.get(name, name)
    if side is None or key not in side:
        return False
    if name == "document" and value is None:
        return side[key] in (None, {"$json": None})
    return same(side[key], stored_form(value))


def is_wanted(row: StoredChange, filters: dict[str, Any]) -> bool:
    """Say whether a stored change of an order fits, by plain Python."""
    values = {**(row.old_values or {}), **(row.new_values or {})}
    ids = filters.get("resource_ids")
    operations, users = filters.get("operations"), filters.get("user_ids")
    impersonators, transactions = filters.get("impersonators"), filters.get("transaction_id")
    start, end = filters.get("date_range") or (None, None)
    first, last = filters.get("id_range") or (None, None)
    return (
        row.resource_type == "ShopOrder"
        and (ids is None or row.resource_id in [str(each) for each in ids])
        and ("fields" not in filters or any(KEYS.get(name, name) in values for name in filters["fields"]))
        and all(has(row.old_values, name, value) for name, value in filters.get("old", {}).items())
        and all(has(row.new_values, name, value) for name, value in filters.get("new", {}).items())
        and (operations is None or row.operation in [str(each) for each in operations])
        and (users is None or row.changed_by in [None if each is None else str(each) for each in users])
        and (impersonators is None or row.impersonated_by in [None if n is None else str(n) for n in impersonators])
        and (filters.get("reason") is None or row.reason == filters["reason"])
        and all(
            name in (row.context or {}) and same((row.context or {})[name], value)
            for name, value in filters.get("context", {}).items()
        )
        and (transactions is None or row.transaction_id in [each.hex for each in transactions])
        and (start is None or row.recorded_at >= start)
        and (end is None or row.recorded_at <= end)
        and (first is None or row.id >= first)
        and (last is None or row.id <= last)
    )


def filters_for(stored: list[StoredChange]) -> st.SearchStrategy[dict[str, Any]]:
    """Give filters of which many fit some of the stored changes."""
    pools: dict[str, list[Any]] = {
        "status": shop.STATUSES,
        "total": shop.TOTALS,
        "count": shop.COUNTS,
        "is_gift": shop.TRUTHS,
        "placed_at": shop.MOMENTS,
        "document": shop.DOCUMENTS,
        "customer_id": [None, 1, 2],
    }
    values = st.sampled_from(sorted(pools)).flatmap(
        lambda name: st.sampled_from(pools[name]).map(lambda value: {name: value})
    )
    some: dict[str, st.SearchStrategy[Any]] = {
        "resource_ids": st.lists(st.integers(1, 8), max_size=4),
        "fields": st.lists(st.sampled_from([*pools, "secret"]), max_size=3),
        "old": values,
        "new": values,
        "operations": st.lists(st.sampled_from([*Operation]), max_size=3),
        "user_ids": st.lists(st.sampled_from(shop.ACTORS), max_size=3),
        "impersonators": st.lists(st.sampled_from(shop.IMPERSONATORS), max_size=2),
        "reason": st.sampled_from(shop.REASONS),
        "context": st.sampled_from([*shop.FACTS, {"n": 1.0}, {"request_id": 1}]),
        "transaction_id": st.lists(
            st.sampled_from(sorted({row.transaction_id for row in stored})).map(uuid.UUID), max_size=5
        ),
        "date_range": _ranges([row.recorded_at for row in stored]),
        "id_range": _ranges([row.id for row in stored]),
    }
    return st.fixed_dictionaries({}, optional=some).filter(lambda filters: len(filters) <= 4)


def _ranges(known: list[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    ends = st.none() | st.sampled_from(known)
    return st.tuples(ends, ends).map(lambda pair: pair if None in pair else (min(pair), max(pair)))


_settings = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_filters_find_what_plain_python_finds(session: Session, stored: list[StoredChange]) -> None:
    """Whatever filters are combined, the changes, their number and the query are those that fit, newest first."""
    sizes = Counter[bool]()

    @_settings
    @given(filters_for(stored), st.booleans())
    def check(filters: Any, newest_first: bool) -> None:
        expected = [row.id for row in stored if is_wanted(row, filters)]

        found = get_changes(Order, session=session, newest_first=newest_first, **filters)

        sizes[bool(expected)] += 1
        assert [each.change_id for each in found] == (expected[::-1] if newest_first else expected)
        assert count_changes(Order, session=session, **filters) == len(expected)
        composed = select_changes(Order, session=session, **filters).with_only_columns(sa.func.count())
        assert session.scalar(composed) == len(expected)

    check()

    assert sizes[True] > 20
    assert sizes[False] > 5


def test_every_value_of_every_type_can_be_asked_for(session: Session, stored: list[StoredChange]) -> None:
    """A value finds the changes that hold it, on either side, whatever its type: no other value, and none twice."""
    pools: dict[str, list[Any]] = {
        "status": shop.STATUSES,
        "total": shop.TOTALS,
        "count": shop.COUNTS,
        "is_gift": shop.TRUTHS,
        "placed_at": shop.MOMENTS,
        "document": [*shop.DOCUMENTS, 1.0, {"a": 1.0, "b": [1, 2]}, sa.JSON.NULL],
    }
    asked = ((name, value, side) for name, pool in pools.items() for value in pool for side in ("old", "new"))
    for name, value, side in asked:
        filters: Any = {side: {name: value}}

        found = get_changes(Order, session=session, newest_first=False, **filters)

        if value is sa.JSON.NULL:
            expected = [r.id for r in stored if (getattr(r, f"{side}_values") or {}).get(name) == {"$json": None}]
        else:
            expected = [row.id for row in stored if is_wanted(row, filters)]
        assert [each.change_id for each in found] == expected


def test_a_change_is_told_whole_and_typed(session: Session, sync_engine: Engine) -> None:
    """A change has its fields under their attribute names, as Python values, with everything that is known of it."""
    with audit_context(user_id=2, impersonated_by=7, reason="why", request_id="r"):
        order = Order(status="open", total=Decimal("1.50"), is_gift=True, placed_at=NEW_YEAR, secret="s")
        session.add(order)
        session.commit()
        key = order.id
        order.total, order.secret = Decimal("2.50"), "t"
        session.commit()
    with sync_engine.connect() as connection:
        rows = read_trail(connection)[-2:]

    updated, inserted = get_changes(Order, session=session, resource_ids=key)

    assert [inserted.change_id, updated.change_id] == [row.id for row in rows]
    assert [inserted.transaction_id.hex, updated.transaction_id.hex] == [row.transaction_id for row in rows]
    assert [inserted.timestamp, updated.timestamp] == [row.recorded_at for row in rows]
    assert updated.timestamp.tzinfo == KYIV
    assert (inserted.operation, updated.operation) == (Operation.INSERT, Operation.UPDATE)
    assert inserted.model is Order
    assert inserted.resource_type == "ShopOrder"
    assert inserted.resource_id == key
    assert inserted.fields == {
        "id": (None, key),
        "status": (None, "open"),
        "total": (None, Decimal("1.50")),
        "count": (None, 0),
        "is_gift": (None, True),
        "placed_at": (None, NEW_YEAR),
        "document": (None, None),
        "secret": (None, MASKED),
        "customer_id": (None, None),
    }
    assert updated.fields["total"].old == Decimal("1.50")
    assert updated.fields["total"].new == Decimal("2.50")
    assert updated.fields["secret"] == (MASKED, MASKED)
    assert updated.fields.keys() == {"total", "secret"}
    assert (updated.changed_by, updated.impersonated_by) == (2, 7)
    assert (updated.reason, updated.context) == ("why", {"request_id": "r"})


def test_without_a_model_everything_in_the_trail_comes(session: Session, sync_engine: Engine) -> None:
    """Changes of all models come together, typed each by its own; those of a label that is gone as they are stored."""
    insert = (
        "INSERT INTO sqlaudit_change (transaction_id, recorded_at, operation, resource_type, resource_id, new_values) "
        "VALUES ('00000000000000000000000000000001', '2026-01-01 00:00:00.000000', 'insert', 'Gone', 'x', :new)"
    )
    with sync_engine.begin() as connection:
        connection.execute(text(insert.replace(":new", f"'{json.dumps({'a': 1, 'b': {'$masked': True}})}'")))
        stored = read_trail(connection)

    changes = get_changes(session=session)

    assert [each.change_id for each in changes] == [row.id for row in reversed(stored)]
    assert changes[0].model is None
    assert changes[0].resource_id == "x"
    assert changes[0].fields == {"a": (None, 1), "b": (None, MASKED)}
    assert {each.model for each in changes} == {Order, Item, Tag, Customer, shop.shop_order_tag, None}
    assert {each.resource_type for each in changes} == {row.resource_type for row in stored}
    of_orders = [each for each in changes if each.model is Order]
    assert of_orders == get_changes(Order, session=session)
    assert any(isinstance(each.fields.get("total", (0, 0))[1], Decimal) for each in of_orders)


def test_several_models_are_asked_for_together(session: Session, stored: list[StoredChange]) -> None:
    """A list of models gives the changes of these; a field that only some have leaves the others out."""
    changes = get_changes([Order, Item], session=session)
    with_status = get_changes([Order, Item, Tag], session=session, new={"status": "open"})
    with_colour = get_changes([Order, Tag], session=session, fields="colour")
    nothing = get_changes([], session=session)

    def ids(*labels: str) -> list[int]:
        return [row.id for row in reversed(stored) if row.resource_type in labels]

    assert [each.change_id for each in changes] == ids("ShopOrder", "ShopItem")
    assert [each.change_id for each in with_status] == [
        row.id
        for row in reversed(stored)
        if (row.resource_type == "ShopOrder" and (row.new_values or {}).get("state") == "open")
        or (row.resource_type == "ShopItem" and (row.new_values or {}).get("status") == "open")
    ]
    assert [each.change_id for each in with_colour] == ids("ShopTag")
    assert nothing == []


# --- pages and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_are_stable_while_others_write(
    session: Session, sync_engine: Engine, stored: list[StoredChange], newest_first: bool
) -> None:
    """Page by page, forth and back, each change comes once, though changes are written in between."""
    expected = [row.id for row in stored if row.resource_type == "ShopOrder"]
    expected = expected[::-1] if newest_first else expected
    forth: list[list[Change]] = []

    def write_something() -> None:
        # SQLite lets nobody write while another reads.
        session.rollback()
        with sessionmaker(sync_engine)() as other:
            register_hooks(other)
            other.add(Order(status="meanwhile"))
            other.commit()

    page = get_changes(Order, session=session, limit=7, newest_first=newest_first)
    while len(forth) < len(expected) // 7:
        forth.append(page)
        write_something()
        page = get_changes(Order, session=session, limit=7, after=page[-1].change_id, newest_first=newest_first)
    back = get_changes(Order, session=session, limit=7, before=forth[-1][0].change_id, newest_first=newest_first)
    between = get_changes(
        Order, session=session, after=expected[2], before=expected[6], newest_first=newest_first, limit=2
    )

    assert [each.change_id for page in forth for each in page] == expected[: 7 * len(forth)]
    assert back == forth[-2]
    assert [each.change_id for each in between] == expected[3:5]


def test_a_limit_of_nothing_gives_nothing(session: Session) -> None:
    """Limit 0 is an empty page and an empty stream."""
    assert get_changes(session=session, limit=0) == []
    assert list(stream_changes(session=session, limit=0)) == []


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [None, 4, 5, 1000])
def test_a_stream_gives_the_same_as_a_list(session: Session, newest_first: bool, limit: int | None) -> None:
    """Whatever the size of its batches, a stream gives what a list holds, in its order."""
    expected = get_changes(Order, session=session, newest_first=newest_first, limit=limit, fields="status")

    for size in (1, 2, 5, 1000):
        streamed = stream_changes_sync(
            Order, session=session, newest_first=newest_first, limit=limit, batch_size=size, fields="status"
        )
        assert list(streamed) == expected
    after = expected[1].change_id
    rest = stream_changes(
        Order, session=session, newest_first=newest_first, after=after, batch_size=3, fields="status", limit=2
    )
    assert [each.change_id for each in rest] == [each.change_id for each in expected[2:4]]


def test_a_stream_reads_as_much_at_a_time_as_it_is_told(session: Session, sync_engine: Engine) -> None:
    """No statement of a stream asks for more changes than a batch holds, and none is sent before it is needed."""
    with sent_statements(sync_engine) as sent:
        changes = stream_changes(session=session, batch_size=10)
        before = len(sent)
        for _ in range(15):
            next(changes)
        changes.close()

    pages = [each for each in sent if "ORDER BY" in each.sql]
    assert before == 0
    assert len(pages) == 2
    assert all("LIMIT" in each.sql for each in pages)
    assert all("10" in each.parameters for each in pages)


async def test_a_stream_survives_what_its_consumer_writes(shop_maker: async_sessionmaker[AsyncSession]) -> None:
    """The consumer writes, commits and rolls back with the same session; what it writes doesn't come."""
    async with shop_maker() as session:
        session.add_all([Order(status=str(number)) for number in range(10)])
        await session.commit()
        seen = []

        async for change in stream_changes(Order, session=session, newest_first=False, batch_size=3):
            seen.append(change.fields["status"].new)
            session.add(Order(status="echo"))
            await (session.rollback() if len(seen) % 4 == 0 else session.commit())

        count = await count_changes(Order, session=session)
    assert seen == [str(number) for number in range(10)]
    assert count == 10 + 8


async def test_everything_is_awaitable_and_opens_its_own_session(shop_maker: async_sessionmaker[AsyncSession]) -> None:
    """Without a session, the configured factory's is used and closed; given an AsyncSession, that one."""
    async with shop_maker() as session:
        with audit_context(user_id="ann"):
            session.add_all([Order(status="open"), Item(status="open")])
            await session.commit()
        table = get_config().trail
        rows = (await session.execute(sa.select(table).order_by(table.c.id.desc()))).all()
        ids = [row.id for row in rows]

        assert [each.change_id for each in await get_changes(session=session)] == ids
        assert [each.change_id for each in await get_changes()] == ids
        assert [each.change_id async for each in stream_changes(session=session)] == ids
        assert [each.change_id async for each in stream_changes()] == ids
        assert await count_changes() == await count_changes(session=session) == 2
        assert await count_changes_by("model") == {"ShopItem": 1, "ShopOrder": 1}
        assert await count_changes_by("actor", session=session) == {"ann": 2}
        found = await session.execute(select_changes(Order, session=session))
        assert [row.resource_type for row in found] == ["ShopOrder"]
    with pytest.raises(RetrievalError, match="_sync"):
        get_changes_sync()
    with pytest.raises(RetrievalError, match="_sync"):
        stream_changes_sync()
    async with contextlib.aclosing(stream_changes(batch_size=1)) as changes:
        async for _ in changes:
            break


def test_a_session_of_a_plain_factory_is_opened_and_closed(session: Session, stored: list[StoredChange]) -> None:
    """With a factory of plain sessions, no session is needed, and nothing is to be awaited."""
    assert len(get_changes_sync()) == len(list(stream_changes_sync())) == count_changes_sync() == len(stored)
    assert count_changes_by_sync("operation") == Counter(Operation(row.operation) for row in stored)


def test_pending_objects_are_flushed_first(session: Session) -> None:
    """What is pending in a session that autoflushes is in the trail that it reads."""
    before = count_changes(Order, session=session)
    session.add(Order(status="pending"))

    assert count_changes(Order, session=session) == before + 1


# --- counts ----------------------------------------------------------------------------------------------------------


def test_counts_by_group_are_those_of_the_rows(session: Session, stored: list[StoredChange]) -> None:
    """Grouped counts are what one counts in the rows; actors have their type, unknown ones are None."""
    orders = [row for row in stored if row.resource_type == "ShopOrder"]

    by_actor = count_changes_by("actor", session=session)
    by_model = count_changes_by("model", session=session)
    by_operation = count_changes_by("operation", Order, session=session)
    by_day = count_changes_by("day", session=session)

    assert by_actor == Counter(None if row.changed_by is None else int(row.changed_by) for row in stored)
    assert by_model == Counter(row.resource_type for row in stored)
    assert by_operation == Counter(Operation(row.operation) for row in orders)
    assert by_day == Counter(row.recorded_at.astimezone(KYIV).date() for row in stored)
    assert count_changes_by("day", session=session, reason="none such") == {}


MOMENTS_OF_DAYS = [
    "2025-03-29 21:59:59.999999",  # Kyiv: the end of 29 March
    "2025-03-29 22:00:00.000000",  # midnight, +02:00
    "2025-03-30 00:59:59.999999",  # the last moment of winter
    "2025-03-30 01:00:00.000000",  # the first of summer, +03:00
    "2025-03-30 20:59:59.999999",
    "2025-03-30 21:00:00.000000",  # midnight in summer
    "2025-03-30 21:59:59.999600",
    "2025-10-25 20:59:59.999999",
    "2025-10-25 21:00:00.000000",  # midnight in summer
    "2025-10-26 00:59:59.999999",
    "2025-10-26 01:00:00.000000",  # winter again
    "2025-10-26 21:59:59.999999",
    "2025-10-26 22:00:00.000000",  # midnight in winter
    "2026-06-30 23:30:00.000000",
    "2026-12-31 23:59:59.999999",
]


@pytest.mark.parametrize(
    "zone", ["Europe/Kyiv", "UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
)
def test_days_are_those_of_the_zone(session: Session, sync_engine: Engine, zone: str) -> None:
    """Days begin at the zone's midnight, in summer and in winter, to the microsecond."""
    with sync_engine.begin() as connection:
        for number, moment in enumerate(MOMENTS_OF_DAYS):
            at = moment + ("+00" if connection.dialect.name == "postgresql" else "")
            connection.execute(
                text(
                    "INSERT INTO sqlaudit_change (transaction_id, recorded_at, operation, resource_type, resource_id) "
                    f"VALUES ('{uuid.UUID(int=number).hex}', '{at}', 'delete', 'Day', '{number}')"
                )
            )
        stored = [row for row in read_trail(connection) if row.resource_type == "Day"]
    config = SQLAuditConfig(time_zone=zone)
    ids = (stored[0].id, None)

    by_day = count_changes_by("day", session=session, config=config, id_range=ids)

    assert len(stored) == len(MOMENTS_OF_DAYS)
    assert by_day == Counter(row.recorded_at.astimezone(ZoneInfo(zone)).date() for row in stored)
    assert list(by_day) == sorted(by_day)


# --- related rows ----------------------------------------------------------------------------------------------------


def ids_that_hold(stored: list[StoredChange], label: str, key: str, values: set[Any]) -> set[str]:
    """Return the resources that have, or had, one of *values*, by the stored rows."""
    return {
        row.resource_id
        for row in stored
        for side in (row.old_values, row.new_values)
        if row.resource_type == label and side and side.get(key) in values
    }


def values_of(stored: list[StoredChange], label: str, ids: set[str], key: str) -> set[Any]:
    """Return the values that some resources have, or had."""
    return {
        side[key]
        for row in stored
        for side in (row.old_values, row.new_values)
        if row.resource_type == label and row.resource_id in ids and side and side.get(key) is not None
    }


def test_the_history_of_a_parent_includes_its_children(session: Session, stored: list[StoredChange]) -> None:
    """Rows that are, or were, its children come with their whole history; links with what they lead to."""
    checked = Counter[str]()
    for key in sorted({int(row.resource_id) for row in stored if row.resource_type == "ShopOrder"}):
        own = {("ShopOrder", str(key))}
        items = {("ShopItem", each) for each in ids_that_hold(stored, "ShopItem", "order_id", {key})}
        links = {("shop_order_tag", each) for each in ids_that_hold(stored, "shop_order_tag", "order_id", {key})}
        names = values_of(stored, "shop_order_tag", {each for _, each in links}, "tag_name")
        customers = {("ShopCustomer", str(n)) for n in values_of(stored, "ShopOrder", {str(key)}, "customer_id")}

        def expected(resources: set[tuple[str, str]]) -> list[int]:
            return [row.id for row in stored if (row.resource_type, row.resource_id) in resources]

        def found(*include: str, order: int = key) -> list[int]:
            changes = get_changes(Order, session=session, resource_ids=order, include=include, newest_first=False)
            return [each.change_id for each in changes]

        assert found("items") == expected(own | items)
        assert found("tags") == expected(own | links | {("ShopTag", each) for each in names})
        assert found("customer") == expected(own | customers)
        assert found("items", "customer") == expected(own | items | customers)
        checked.update(items=len(items), tags=len(names), customers=len(customers))

    assert min(checked.values()) > 3


def test_a_child_shows_its_parents(session: Session, stored: list[StoredChange]) -> None:
    """From the other side, too: a child's history includes that of the rows it belonged to, filtered alike."""
    moved = next(
        row.resource_id
        for row in stored
        if row.resource_type == "ShopItem"
        and row.operation == "update"
        and (row.old_values or {}).get("order_id")
        and (row.new_values or {}).get("order_id")
    )
    parents = {str(each) for each in values_of(stored, "ShopItem", {moved}, "order_id")}

    changes = get_changes(Item, session=session, resource_ids=moved, include="order", operations="insert")

    assert {(each.resource_type, str(each.resource_id)) for each in changes} == {
        ("ShopItem", moved),
        *(("ShopOrder", each) for each in parents),
    }
    assert {each.operation for each in changes} == {Operation.INSERT}
    assert len(parents) > 1


def test_what_cannot_be_included_is_refused(session: Session) -> None:
    """Children that aren't tracked, relationships that there aren't, and parents that aren't named are errors."""
    with pytest.raises(UntrackedError, match=r"Memo is not tracked; decorate it with @track_table\(\)"):
        get_changes(Order, session=session, resource_ids=1, include="memos")
    with pytest.raises(UnknownFieldError, match=r"did you mean items\?"):
        get_changes(Order, session=session, resource_ids=1, include=["item"])
    with pytest.raises(RetrievalError, match="without resource_ids"):
        get_changes(Order, session=session, include=["items"])
    with pytest.raises(RetrievalError, match="one mapped class"):
        get_changes([Order, Item], session=session, resource_ids=1, include=["items"])


# --- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"resource_ids": 1}, "without a model"),
        ({"model": "Order"}, "expected a mapped class"),
        ({"model": [Order, 5]}, "expected a mapped class"),
        ({"fields": 5}, "fields is 5"),
        ({"old": ["status"]}, "old is a list; expected a mapping"),
        ({"new": {5: 1}}, "new is a dict; expected a mapping"),
        ({"operations": "upsert"}, "expected some of baseline, delete, insert, update"),
        ({"operations": ["insert", 5]}, "expected some of"),
        ({"user_ids": [1.5]}, "user_ids holds a float"),
        ({"impersonators": True}, "impersonators holds a bool"),
        ({"reason": 5}, "reason is a int"),
        ({"context": "request_id"}, "context is a str"),
        ({"transaction_id": "no uuid"}, "expected a UUID"),
        ({"transaction_id": 5}, "expected a UUID"),
        ({"date_range": "2026"}, "expected a pair of datetimes"),
        ({"date_range": ("2026", None)}, "date_range holds a str"),
        ({"date_range": (KYIV_NOON, NOON)}, "date_range ends .* before it starts"),
        ({"id_range": 5}, "expected a pair of change ids"),
        ({"id_range": (5, 4)}, "ends .4. before it starts .5."),
        ({"id_range": ("a", None)}, "id_range is 'a'"),
        ({"limit": -1}, "limit is -1"),
        ({"after": "x"}, "after is 'x'"),
        ({"newest_first": "yes"}, "newest_first is 'yes'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_the_call(filters: dict[str, Any], message: str) -> None:
    """The error names the argument and what was expected, before any session is opened, in both colours."""
    set_config(SQLAuditConfig())

    with pytest.raises(RetrievalError, match=message):
        get_changes(**filters)
    with pytest.raises(RetrievalError, match=message):
        get_changes_sync(**filters)


def test_values_that_make_no_sense_are_refused(session: Session) -> None:
    """Keys and values that the model can't hold, withheld values, unknown fields, models and groups are errors."""
    with pytest.raises(RetrievalError, match=r"A value of ShopOrder\.count can't be made of a str"):
        get_changes(Order, session=session, new={"count": "many"})
    with pytest.raises(RetrievalError, match=r"resource id of ShopOrder can't be read from this list"):
        get_changes(Order, session=session, resource_ids=[[1]])
    with pytest.raises(RetrievalError, match=r"withheld from the trail of ShopOrder; ask with fields="):
        get_changes(Order, session=session, old={"secret": "s"})
    with pytest.raises(RetrievalError, match=r"The fact request_id can't be a set"):
        get_changes(session=session, context={"request_id": {1}})
    for argument in ("fields", "old", "new"):
        filters: Any = {argument: {"statos": 1}}
        with pytest.raises(UnknownFieldError, match=rf"{argument} names 'statos'.*did you mean status\?"):
            get_changes(Order, session=session, **filters)
    with pytest.raises(UntrackedError, match="Memo is not tracked"):
        get_changes(shop.Memo, session=session)
    with pytest.raises(RetrievalError, match="group is 'week'; expected one of 'day', 'actor', 'model', 'operation'"):
        count_changes_by("week", session=session)  # type: ignore[call-overload]
    sizes: list[Any] = [0, None]
    for size in sizes:
        with pytest.raises(RetrievalError, match=f"batch_size is {size}"):
            stream_changes(session=session, batch_size=size)
    with pytest.raises(UnknownFieldError, match="which any tracked model doesn't have"):
        get_changes(session=session, fields="no such field anywhere")
    with pytest.raises(TypeError, match="resource_id"):
        get_changes(Order, session=session, resource_id=1)  # type: ignore[call-overload]


def test_reading_changes_nothing(session: Session, stored: list[StoredChange], sync_engine: Engine) -> None:
    """Questions send nothing but SELECTs, one each but for days and streams, and leave no object in the session."""
    with sent_statements(sync_engine) as sent:
        get_changes(Order, session=session, new={"status": "open"})
        get_changes(Order, session=session, resource_ids=1, include=["items", "tags"])
        count_changes(session=session)
        count_changes_by("actor", session=session)

    assert [each.verb for each in sent] == ["SELECT"] * 4
    assert list(session) == []
    with sync_engine.connect() as connection:
        assert read_trail(connection) == stored
