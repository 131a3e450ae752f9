"""Law 8: a question reads what it answers, by an index, and not the trail: PostgreSQL's plans of what is sent."""

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, event, inspect, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from databases import postgresql_database, sqlite_database
from sqlaudit import (
    SQLAuditConfig,
    count_changes,
    create_audit_tables_sync,
    get_changes,
    get_config,
    get_resource_changes,
    set_config,
    stream_changes,
    track_table,
)

SIZE = 20_000
BEGAN = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)

# A month is 1,000 changes; three of a transaction, 20 of a resource but for one, whose id is 0, with 100; 50 an actor.
FILL = f"""
INSERT INTO sqlaudit_change
    (transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, reason, new_values, old_values)
SELECT
    md5((n / 3)::text)::uuid,
    timestamptz '2025-01-01 00:00:00Z' + n * interval '43 minutes',
    CASE WHEN n < 1000 THEN 'insert' ELSE 'update' END,
    CASE WHEN n % 200 = 0 THEN 'Sized' ELSE 'Other' || n % 10 END,
    CASE WHEN n % 200 = 0 THEN '0' ELSE (1 + n % 1000)::text END,
    (n * 7919 % 400)::text,
    CASE WHEN n % 3 = 0 THEN 'a reason' END,
    jsonb_build_object('name', 'name ' || n),
    jsonb_build_object('name', 'name ' || (n - 1))
FROM generate_series(0, {SIZE - 1}) AS n
"""


class Base(DeclarativeBase):
    pass


@track_table()
class Sized(Base):
    __tablename__ = "sized"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(scope="module", name="large")
def _large(postgresql_server: URL) -> Iterator[Engine]:
    with postgresql_database(postgresql_server) as database:
        engine = database.make_engine()
        create_audit_tables_sync(engine)
        with engine.begin() as connection:
            connection.execute(text(FILL))
            # What autovacuum does by and by.
            connection.execute(text("SELECT brin_summarize_new_values('sqlaudit_change_time')"))
            connection.execute(text("ANALYZE sqlaudit_change"))
        yield engine
        engine.dispose()


@pytest.fixture(name="session")
def _session(large: Engine) -> Iterator[Session]:
    set_config(SQLAuditConfig())
    with Session(large) as session:
        yield session


class Plan:
    """How PostgreSQL answered the last statement that a question sent."""

    def __init__(self, connection: Connection, question: Callable[[], Any]) -> None:
        sent: list[tuple[str, Any]] = []

        def listen(_connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool) -> None:
            sent.append((sql, parameters))

        event.listen(connection, "before_cursor_execute", listen)
        self.answer = question()
        event.remove(connection, "before_cursor_execute", listen)
        sql, parameters = sent[-1]
        explained: Any = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters).scalar()
        self.nodes = list(_nodes(explained[0]["Plan"]))

    @property
    def indexes(self) -> set[str]:
        """The indexes that were used, without the name of the table that they begin with."""
        names = {node["Index Name"].removeprefix("sqlaudit_change_") for node in self.nodes if "Index Name" in node}
        scanned = {node["Node Type"] for node in self.nodes if "Seq Scan" in node["Node Type"]}
        return names | scanned

    @property
    def rows_read(self) -> int:
        """How many rows of the table were looked at."""
        heap = [node for node in self.nodes if node.get("Relation Name") == "sqlaudit_change"]
        removed = "Rows Removed by Filter", "Rows Removed by Index Recheck"
        return sum(
            round((node["Actual Rows"] + sum(node.get(name, 0) for name in removed)) * node["Actual Loops"])
            for node in heap
        )

    @property
    def sorts(self) -> bool:
        """Whether what was found had to be sorted."""
        return any("Sort" in node["Node Type"] for node in self.nodes)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def plan_of(session: Session, question: Callable[[], Any]) -> Plan:
    """Return how PostgreSQL answers a question."""
    return Plan(session.connection(), question)


def test_the_history_of_a_resource_is_read_by_its_index(session: Session) -> None:
    """Of 20,000 changes, the 100 of a resource are looked at, in both forms of the question."""
    for question in (
        lambda: get_changes(Sized, session=session, resource_ids=0),
        lambda: get_resource_changes(Sized, 0, session=session),
    ):
        plan = plan_of(session, question)

        assert len(plan.answer) == 100
        assert plan.indexes == {"resource"}
        assert plan.rows_read == 100


def test_the_newest_page_is_read_by_the_primary_key(session: Session) -> None:
    """The 50 newest changes are the 50 that are looked at, and nothing is sorted; so is any page that follows."""
    newest = plan_of(session, lambda: get_changes(session=session, limit=50))
    following = plan_of(
        session, lambda: get_changes(session=session, limit=50, after=newest.answer[-1].change_id - 10_000)
    )
    before = plan_of(session, lambda: get_changes(session=session, limit=50, before=following.answer[0].change_id))

    for plan in (newest, following, before):
        assert len(plan.answer) == 50
        assert plan.indexes == {"pkey"}
        assert plan.rows_read == 50
        assert not plan.sorts


def test_a_part_of_a_stream_is_read_by_the_primary_key(session: Session) -> None:
    """Each part of a stream costs what it holds, wherever it is."""
    changes = stream_changes(session=session, newest_first=False, after=15_000, batch_size=100)

    plan = plan_of(session, lambda: next(changes))
    changes.close()

    assert plan.indexes == {"pkey"}
    assert plan.rows_read == 100
    assert not plan.sorts


def test_an_actors_changes_in_a_month_are_read_by_the_actors_index(session: Session) -> None:
    """Neither what others did, nor what this one did in other months, is looked at."""
    month = BEGAN + dt.timedelta(days=300), BEGAN + dt.timedelta(days=330)

    plan = plan_of(session, lambda: get_changes(session=session, user_ids=7, date_range=month))
    counted = plan_of(session, lambda: count_changes(session=session, user_ids=7, date_range=month))

    assert 0 < len(plan.answer) < 10
    assert plan.indexes == counted.indexes == {"actor"}
    assert plan.rows_read == counted.rows_read == len(plan.answer)


def test_a_transaction_is_read_by_its_index(session: Session) -> None:
    """The changes of one transaction are all that is looked at."""
    some = get_changes(session=session, limit=1, after=10_000)[0]

    plan = plan_of(session, lambda: get_changes(session=session, transaction_id=some.transaction_id))

    assert len(plan.answer) == 3
    assert plan.indexes == {"transaction"}
    assert plan.rows_read == 3


def test_a_resource_up_to_a_moment_is_read_by_its_index(session: Session) -> None:
    """What a snapshot needs, the changes of a resource up to an id, is all that is looked at."""
    plan = plan_of(session, lambda: get_changes(Sized, session=session, resource_ids=0, id_range=(None, SIZE // 2)))

    assert len(plan.answer) == 50
    assert plan.indexes == {"resource"}
    assert plan.rows_read == 50


def test_the_newest_changes_of_a_model_need_no_index_of_their_own(session: Session) -> None:
    """A model that is written often is found from the end of the trail; a rare one by the index of resources."""
    often = plan_of(session, lambda: get_changes(Sized, session=session, limit=5))

    assert often.indexes <= {"pkey", "resource"}
    assert often.rows_read <= 5 * 200 + 1


def test_a_period_is_read_by_the_ranges_of_pages_that_it_lies_in(session: Session) -> None:
    """The changes of a day long ago are found without looking at those of other months."""
    day = BEGAN + dt.timedelta(days=300), BEGAN + dt.timedelta(days=301)

    plan = plan_of(session, lambda: count_changes(session=session, date_range=day))

    assert plan.answer == 34
    assert plan.indexes == {"time"}
    assert plan.rows_read < SIZE / 2


def test_the_indexes_are_those_that_pay(session: Session) -> None:
    """A change is in the primary key and in three indexes, its page's range in a fourth: a question above uses each."""
    names = session.connection().execute(
        text("SELECT indexname FROM pg_indexes WHERE tablename = :name AND schemaname = current_schema()"),
        {"name": get_config().trail.name},
    )

    found = {name.removeprefix("sqlaudit_change_") for (name,) in names}
    assert found == {"pkey", "resource", "actor", "transaction", "time"}


def test_sqlite_has_no_index_that_it_cannot_make_cheaply(tmp_path: Path) -> None:
    """An index of times, which costs as much as any other where pages have no ranges, is PostgreSQL's alone."""
    with sqlite_database(tmp_path) as database:
        engine = database.make_engine()
        create_audit_tables_sync(engine)

        indexes = {index["name"] for index in inspect(engine).get_indexes("sqlaudit_change")}
        engine.dispose()

    assert indexes == {"sqlaudit_change_resource", "sqlaudit_change_actor", "sqlaudit_change_transaction"}
