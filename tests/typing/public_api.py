"""
What type checkers say of the public API: never run, checked by mypy and pyright.

Every `ignore`, which both of them heed, stands for an error that users shall
get: one that isn't needed any more is an error itself.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import datetime as dt
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator, Mapping
from typing import Any, assert_type

from sqlalchemy import Connection, Engine, MetaData, Select, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import (
    MASKED,
    AuditContext,
    Change,
    ChangeSubscription,
    FieldChange,
    FieldDiff,
    OldNew,
    Operation,
    Snapshot,
    SQLAuditConfig,
    Subscription,
    audit_context,
    audit_metadata,
    bind_audit_context,
    count_changes,
    count_changes_by,
    count_changes_by_sync,
    count_changes_sync,
    create_audit_tables,
    create_audit_tables_sync,
    create_baseline,
    create_baseline_sync,
    diff_resource,
    diff_resource_sync,
    drain_changes,
    drain_changes_sync,
    get_audit_context,
    get_changes,
    get_changes_sync,
    get_config,
    get_resource_changes,
    get_resource_changes_sync,
    get_resource_snapshot,
    get_resource_snapshot_sync,
    get_snapshots,
    get_snapshots_sync,
    has_config,
    load_as_of,
    load_as_of_sync,
    on_change,
    register_hooks,
    restore_resource,
    restore_resource_sync,
    select_changes,
    set_audit_context,
    set_config,
    stream_changes,
    stream_changes_sync,
    track,
    track_table,
    undo_transaction,
    undo_transaction_sync,
)
from sqlaudit.testing import Recording, assert_changed, assert_unchanged, recorded_changes
from sqlaudit.types import Masked


class Base(DeclarativeBase):
    pass


@track_table(["name"], exclude_fields=(), masked_fields={"token"}, table_label="Client")
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    token: Mapped[str]

    def shout(self) -> str:
        """Return the name, louder."""
        return self.name.upper()


# --- declaring -------------------------------------------------------------------------------------------------------


def decorators_preserve_the_class(table: Table) -> None:
    """A decorated class is the class itself, with all of its attributes."""
    assert_type(Customer(name="a").shout(), str)
    assert_type(Customer(name="a").name, str)
    assert_type(track_table()(Customer), type[Customer])
    assert_type(track(table, tracked_fields=["name"]), Table)


def misspelt_declarations_are_rejected(table: Table) -> None:
    """Keywords that there aren't, and positions that there aren't, are errors."""
    track_table(tracked_field=["name"])  # type: ignore[call-arg]
    track_table(["name"], ["token"])  # type: ignore[call-arg]
    track_table(tracked_fields=5)  # type: ignore[arg-type]
    track_table(table_label=5)  # type: ignore[arg-type]
    track(table, masked_field=["name"])  # type: ignore[call-arg]
    track(Customer)  # type: ignore[arg-type]
    track_table()(table)  # type: ignore[type-var]


# --- retrieval -------------------------------------------------------------------------------------------------------


async def retrieval_with_an_async_session_is_awaited(session: AsyncSession) -> None:
    """With an AsyncSession, by keyword or position, the result is awaitable."""
    assert_type(await get_resource_changes(Customer, session=session), list[FieldChange])
    assert_type(await get_resource_changes(Customer, 1, session), list[FieldChange])
    assert_type(await get_resource_changes(Customer, None, session, "name"), list[FieldChange])
    assert_type(get_resource_changes(Customer, session=session), Awaitable[list[FieldChange]])


async def retrieval_without_a_session_is_awaited() -> None:
    """Without a session, the result is awaitable."""
    assert_type(await get_resource_changes(Customer), list[FieldChange])
    assert_type(await get_resource_changes(Customer, 1), list[FieldChange])
    assert_type(await get_resource_changes(Customer, session=None), list[FieldChange])
    assert_type(await get_resource_changes(Customer, config=SQLAuditConfig()), list[FieldChange])


def retrieval_with_a_session_is_a_list(session: Session, table: Table) -> None:
    """With a Session, by keyword or position, the result is there at once."""
    assert_type(get_resource_changes(Customer, session=session), list[FieldChange])
    assert_type(get_resource_changes(Customer, 1, session=session), list[FieldChange])
    assert_type(get_resource_changes(Customer, 1, session), list[FieldChange])
    assert_type(get_resource_changes(table, session=session), list[FieldChange])
    assert_type(get_resource_changes_sync(Customer), list[FieldChange])
    assert_type(get_resource_changes_sync(Customer, [1, 2], session), list[FieldChange])
    assert_type(get_resource_changes_sync(table, session=session), list[FieldChange])


def every_filter_is_accepted(session: Session, moment: dt.datetime) -> None:
    """All filters together, in all of their forms, are no error."""
    get_resource_changes(
        Customer,
        filter_resource_ids=[1, "2", uuid.uuid4(), (1, 2)],
        session=session,
        filter_fields=["name", "token"],
        filter_date_range=(moment, None),
        filter_user_ids=[1, "2", uuid.uuid4()],
        limit=10,
        offset=0,
        sort_by="changed_by",
        sort_direction="asc",
        config=None,
    )
    get_resource_changes_sync(
        Customer, filter_fields="name", filter_user_ids=1, filter_date_range=(None, moment), sort_by=None
    )


def misspelt_questions_are_rejected(session: Session, async_session: AsyncSession, engine: Engine) -> None:
    """A misspelt keyword or choice, and a session of the wrong kind, are errors."""
    get_resource_changes(Customer, sesion=session)  # type: ignore[call-overload]
    get_resource_changes(Customer, session=session, filter_field="a")  # type: ignore[call-overload]
    get_resource_changes(Customer, session=async_session, limits=1)  # type: ignore[call-overload]
    get_resource_changes(Customer, session=engine)  # type: ignore[call-overload]
    get_resource_changes(Customer, session=session, sort_by="name")  # type: ignore[call-overload]
    get_resource_changes(Customer, session=session, sort_direction="up")  # type: ignore[call-overload]
    get_resource_changes(Customer, session=session, filter_user_ids=1.5)  # type: ignore[call-overload]
    get_resource_changes("Customer", session=session)  # type: ignore[call-overload]
    get_resource_changes_sync(Customer, session=async_session)  # type: ignore[arg-type]
    get_resource_changes_sync(Customer, filter_resource_id=1)  # type: ignore[call-arg]


async def questions_to_the_whole_trail_are_awaited(session: AsyncSession) -> None:
    """With an AsyncSession, or without one, what gives a value is awaitable, and a stream an async generator."""
    assert_type(await get_changes(session=session), list[Change])
    assert_type(await get_changes([Customer], session=session, limit=5), list[Change])
    assert_type(await get_changes(Customer), list[Change])
    assert_type(stream_changes(Customer, session=session), AsyncGenerator[Change, None])
    assert_type(await count_changes(Customer, session=session), int)
    assert_type(await count_changes_by("day", session=session), dict[Any, int])
    assert_type(await create_baseline(Customer, session=session), int)
    assert_type(await create_baseline(Customer), int)
    assert_type(select_changes(session=session), Select[Any])


def questions_with_a_session_are_answered(session: Session, table: Table) -> None:
    """With a Session, and by the synchronous twins, values are values, and a stream is a generator."""
    assert_type(get_changes(session=session), list[Change])
    assert_type(get_changes_sync([Customer, table]), list[Change])
    assert_type(stream_changes(Customer, session=session), Generator[Change, None, None])
    assert_type(stream_changes_sync(Customer), Generator[Change, None, None])
    assert_type(count_changes(Customer, session=session), int)
    assert_type(count_changes_sync(), int)
    assert_type(count_changes_by("actor", Customer, session=session), dict[Any, int])
    assert_type(count_changes_by_sync("model"), dict[Any, int])
    assert_type(create_baseline(Customer, session=session), int)
    assert_type(create_baseline_sync(Customer, progress=print), int)
    assert_type(select_changes(Customer, session=session), Select[Any])


def every_filter_of_whole_changes_is_accepted(session: Session, moment: dt.datetime, some: uuid.UUID) -> None:
    """What each filter takes: one value or several."""
    get_changes(
        Customer,
        session=session,
        resource_ids=[1, 2],
        include=["orders"],
        fields="name",
        old={"name": "a"},
        new={"name": None},
        operations=Operation.UPDATE,
        user_ids=[1, None],
        impersonators=7,
        reason="why",
        context={"request_id": "r"},
        transaction_id=some,
        date_range=(moment, None),
        id_range=(None, 5),
        limit=5,
        after=1,
        before=2,
        newest_first=False,
        config=SQLAuditConfig(),
    )
    get_changes_sync(operations=["insert", Operation.DELETE], fields={"a", "b"}, transaction_id=[some, str(some)])


def misspelt_filters_are_rejected(session: Session, async_session: AsyncSession) -> None:
    """Keywords, groups and sessions that there aren't are errors."""
    get_changes(Customer, session=session, field="name")  # type: ignore[call-overload]
    get_changes(Customer, session=session, old=["name"])  # type: ignore[call-overload]
    get_changes_sync(Customer, session=async_session)  # type: ignore[arg-type]
    count_changes_by("week", session=session)  # type: ignore[call-overload]
    stream_changes(Customer, session=session, before=5)  # type: ignore[call-overload]
    create_baseline(Customer, session=session, batch=5)  # type: ignore[call-overload]


def whole_changes_have_types(change: Change) -> None:
    """What a change consists of; it can't be changed."""
    assert_type(change.change_id, int)
    assert_type(change.transaction_id, uuid.UUID)
    assert_type(change.timestamp, dt.datetime)
    assert_type(change.operation, Operation)
    assert_type(change.fields, Mapping[str, OldNew])
    assert_type(change.context, Mapping[str, Any])
    change.reason = "another"  # type: ignore[misc]


def found_changes_have_types(change: FieldChange) -> None:
    """Each part of a field change has its type, and none can be assigned."""
    assert_type(change.change_id, int)
    assert_type(change.transaction_id, uuid.UUID)
    assert_type(change.timestamp, dt.datetime)
    assert_type(change.operation, Operation)
    assert_type(change.field_name, str)
    assert_type(change.reason, str | None)
    assert_type(change.old_value, Any)
    assert_type(MASKED, Masked)
    change.reason = "another"  # type: ignore[misc]


# --- tables ----------------------------------------------------------------------------------------------------------


async def creating_with_something_asynchronous_is_awaited(engine: AsyncEngine, connection: AsyncConnection) -> None:
    """With an AsyncEngine or AsyncConnection, the result is awaitable."""
    assert_type(create_audit_tables(engine), Awaitable[None])
    assert_type(create_audit_tables(connection), Awaitable[None])
    await create_audit_tables(engine)
    await create_audit_tables(connection)


def creating_with_something_synchronous_is_not(engine: Engine, connection: Connection, url: str) -> None:
    """With an Engine or Connection there is nothing to await; a URL is neither."""
    create_audit_tables(engine)
    create_audit_tables(connection)
    create_audit_tables_sync(engine)
    create_audit_tables_sync(connection)
    assert_type(audit_metadata, MetaData)
    assert_type(create_audit_tables(engine), None)
    assert_type(create_audit_tables(connection), None)
    create_audit_tables(url)  # type: ignore[call-overload]
    create_audit_tables(bnd=engine)  # type: ignore[call-overload]


def creating_without_a_loop_needs_something_synchronous(engine: AsyncEngine) -> None:
    """An AsyncEngine is refused where nobody awaits."""
    create_audit_tables_sync(engine)  # type: ignore[arg-type]


# --- configuration, hooks, context -----------------------------------------------------------------------------------


def get_db() -> Iterator[Session]:
    """Yield a session."""
    with Session() as session:
        yield session


async def get_async_db() -> AsyncIterator[AsyncSession]:
    """Yield a session."""
    async with AsyncSession() as session:
        yield session


async def ask_somebody() -> int | None:
    """Return a user's id, in a while."""
    return 1


def ask() -> str:
    """Return a user's id."""
    return "me"


def configurations_of_every_kind_are_accepted() -> None:
    """Each kind of factory, callback and zone fits."""
    set_config(SQLAuditConfig())
    set_config(SQLAuditConfig(session_factory=async_sessionmaker(), get_user_id_callback=ask_somebody))
    set_config(SQLAuditConfig(session_factory=sessionmaker(), get_user_id_callback=ask))
    set_config(SQLAuditConfig(session_factory=get_db, time_zone=dt.UTC))
    set_config(SQLAuditConfig(session_factory=get_async_db, time_zone="Europe/Kyiv"))
    set_config(SQLAuditConfig(user_model=Customer, user_model_user_id_field="id", require_user=True))
    assert_type(get_config(), SQLAuditConfig)
    assert_type(has_config(), bool)


def misspelt_configurations_are_rejected() -> None:
    """Keywords that there aren't, and values of another type, are errors; a configuration can't be assigned to."""
    SQLAuditConfig(timezone="UTC")  # type: ignore[call-arg]
    SQLAuditConfig(time_zone=3)  # type: ignore[arg-type]
    SQLAuditConfig(session_factory=Session())  # type: ignore[arg-type]
    SQLAuditConfig(get_user_id_callback=42)  # type: ignore[arg-type]
    SQLAuditConfig(get_user_id_callback=lambda: 1.5)  # type: ignore[arg-type, return-value]
    SQLAuditConfig(None)  # type: ignore[call-arg]
    set_config({})  # type: ignore[arg-type]
    get_config().time_zone = "UTC"  # type: ignore[misc]


def hooks_are_subscriptions(session: AsyncSession) -> None:
    """Registering gives a subscription, which is a context manager of itself."""
    assert_type(register_hooks(), Subscription)
    with register_hooks(session, config=SQLAuditConfig()) as subscription:
        assert_type(subscription, Subscription)
    subscription.remove()
    register_hooks(configuration=None)  # type: ignore[call-arg]


def contexts_are_values(session: Session, async_session: AsyncSession) -> None:
    """Each way to say who acts gives an AuditContext; any keyword is a fact."""
    assert_type(set_audit_context(user_id=1, reason="why", ticket="T-1"), AuditContext)
    assert_type(get_audit_context(), AuditContext)
    assert_type(bind_audit_context(session, user_id="me"), AuditContext)
    assert_type(bind_audit_context(async_session, user_id=uuid.uuid4()), AuditContext)
    with audit_context(user_id=1, anything={"goes": [1]}) as context:
        assert_type(context, AuditContext)
    audit_context(user_id=1.5)  # type: ignore[arg-type]
    audit_context(reason=1)  # type: ignore[arg-type]
    audit_context(1)  # type: ignore[call-arg]
    context.user_id = 2  # type: ignore[misc]


def a_block_does_not_swallow_exceptions() -> int:
    """A function that returns within a block returns: type checkers know that the block lets errors through."""
    with audit_context(user_id=1):
        return 1


# --- looking into the past -------------------------------------------------------------------------------------------


async def the_past_is_typed(session: AsyncSession, plain: Session) -> None:
    """An AsyncSession, or none, is to be awaited or iterated over asynchronously; a Session isn't."""
    assert_type(await get_resource_snapshot(Customer, 1, session=session, at=1), Snapshot)
    assert_type(await get_resource_snapshot(Customer, 1, at=dt.datetime.now(dt.UTC)), Snapshot)
    assert_type(get_resource_snapshot(Customer, 1, session=plain, at=uuid.uuid4()), Snapshot)
    assert_type(get_resource_snapshot_sync(Customer, 1, include=["orders"]), Snapshot)
    assert_type(get_snapshots(Customer, session=session), AsyncIterator[Snapshot])
    assert_type(get_snapshots(Customer, session=plain, where={"name": "a"}), Iterator[Snapshot])
    assert_type(get_snapshots_sync(Customer), Iterator[Snapshot])
    assert_type(await load_as_of(Customer, 1, session=session, at=None), Customer | None)
    assert_type(load_as_of(Customer, 1, session=plain, at=None), Customer | None)
    assert_type(load_as_of_sync(Customer, 1, at=None), Customer | None)
    assert_type(await diff_resource(Customer, 1, 1, 2, session=session), dict[str, FieldDiff])
    assert_type(diff_resource(Customer, 1, 1, session=plain), dict[str, FieldDiff])
    assert_type(diff_resource_sync(Customer, 1, 1, session=plain), dict[str, FieldDiff])
    assert_type(await restore_resource(Customer, 1, session=session, at=1), Customer | None)
    assert_type(restore_resource(Customer, 1, session=plain, at=1, delete=True), Customer | None)
    assert_type(restore_resource_sync(Customer, 1, session=plain, at=1), Customer | None)
    assert_type(await undo_transaction(uuid.uuid4(), session=session), list[int])
    assert_type(undo_transaction(uuid.uuid4(), session=plain, force=True), list[int])
    assert_type(undo_transaction_sync(uuid.uuid4(), session=plain), list[int])


def misspelt_questions_about_the_past_are_rejected(session: AsyncSession, plain: Session) -> None:
    """Keywords that there aren't, and values of another type, are errors; what is written needs a session."""
    get_resource_snapshot_sync(Customer, 1, when=1)  # type: ignore[call-arg]
    get_resource_snapshot_sync(Customer, 1, at="now")  # type: ignore[arg-type]
    get_snapshots_sync(Customer, session=session)  # type: ignore[arg-type]
    restore_resource_sync(Customer, 1, at=1)  # type: ignore[call-arg]
    undo_transaction_sync("1", session=plain)  # type: ignore[arg-type]
    track_table(renamed_fields=["a"])  # type: ignore[arg-type]


# --- hearing of changes ----------------------------------------------------------------------------------------------


async def subscriptions_are_typed(table: Table) -> None:
    """A callback of one change subscribes; as a decorator, on_change() preserves the function."""

    def plain(change: Change) -> None: ...

    async def waiting(change: Change) -> int:
        return change.change_id

    assert_type(on_change(plain), ChangeSubscription)
    assert_type(on_change(waiting, Customer, table), ChangeSubscription)
    assert_type(await on_change(Customer)(waiting)(get_changes_sync()[0]), int)
    assert_type(await on_change()(waiting)(get_changes_sync()[0]), int)
    with on_change(lambda change: change.fields) as subscription:
        subscription.remove()
    assert_type(await drain_changes(), None)
    assert_type(drain_changes_sync(timeout=1.5), bool)


def impossible_subscriptions_are_rejected() -> None:
    """Callbacks of anything but a change, and models that are none, are errors."""

    def of_nothing() -> None: ...

    def of_text(change: str) -> None: ...

    on_change(of_nothing)  # type: ignore[arg-type]
    on_change(of_text)  # type: ignore[arg-type]
    on_change(print, "Customer")  # type: ignore[call-overload]


# --- testing ---------------------------------------------------------------------------------------------------------


async def recorded_changes_are_typed(session: AsyncSession, plain: Session, customer: Customer) -> None:
    """An AsyncSession's block is entered with ``async with``, a Session's with ``with``; both give a list."""
    async with recorded_changes(session) as changes:
        assert_type(changes, list[Change])
    with recorded_changes(plain) as changes:
        assert_type(changes, list[Change])
    assert_type(assert_changed(changes, customer, name=("a", ...), by=None), Change)
    assert_type(assert_changed(changes, (Customer, 1), operation="delete", fields={"by": (1, 2)}), Change)
    assert_unchanged(changes, Customer, "name")
    recording = Recording(session)
    assert_type(await recording.changes(), list[Change])
    assert_type(recording.changes_sync(), list[Change])


def impossible_assertions_are_rejected(plain: Session, engine: Engine) -> None:
    """What isn't a session has no changes, and what is expected of a field is a pair."""
    recorded_changes(engine)  # type: ignore[call-overload]
    assert_changed([], Customer, name="b")  # type: ignore[arg-type]
    assert_unchanged([], Customer, name=("a", "b"))  # type: ignore[call-arg]
