"""The pytest plugin, as the tests of an application use it: in processes of its own, found by its entry point."""

import pytest

pytest_plugins = "pytester"

SETUP = """\
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import SQLAuditConfig, audit_context, create_audit_tables, register_hooks, set_config, track_table
from sqlaudit.testing import Recording, assert_changed, assert_unchanged, recorded_changes


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


set_config(SQLAuditConfig())
register_hooks()
"""

ASYNC_SESSION = """
@pytest.fixture
async def audit_session(tmp_path):
    # The classical setup: nothing that a test commits outlives it.
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await transaction.rollback()
    await engine.dispose()
"""

ASYNC_TEST = """
async def test_renaming(audit_session, audit_recording):
    customer = Customer(name="a")
    audit_session.add(customer)
    await audit_session.commit()
    await audit_session.refresh(customer)
    with audit_context(user_id=42):
        customer.name = "b"
        await audit_session.commit()
    changes = await audit_recording.changes()
    assert [change.operation for change in changes] == ["insert", "update"]
    assert_changed(changes, customer, name=("a", "b"), by=42)


async def test_a_block(audit_session):
    async with recorded_changes(audit_session) as changes:
        audit_session.add(Customer(id=7, name="a"))
    assert_changed(changes, (Customer, 7), operation="insert")
"""

SYNC = """
@pytest.fixture
def audit_session(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_renaming(audit_session, audit_recording):
    customer = Customer(name="a")
    audit_session.add(customer)
    audit_session.commit()
    customer.name = "b"
    assert_changed(audit_recording.changes_sync(), customer, name=("a", "b"), by=None)


def test_a_block(audit_session):
    with recorded_changes(audit_session) as changes:
        audit_session.add(Customer(id=7, name="a"))
    assert_changed(changes, (Customer, 7), operation="insert")
"""

STRICT = ["-W", "error", "-p", "no:cacheprovider"]
WITHOUT_ASYNCIO = [*STRICT, "-p", "no:asyncio"]
WITH_ASYNCIO = [*STRICT, "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]


def test_synchronous_sessions(pytester: pytest.Pytester) -> None:
    """The fixture records what a Session writes, and a block does."""
    pytester.makepyfile(SETUP + SYNC)

    pytester.runpytest_subprocess(*WITHOUT_ASYNCIO).assert_outcomes(passed=2)


def test_async_sessions_with_pytest_asyncio(pytester: pytest.Pytester) -> None:
    """With pytest-asyncio, the fixture records what an AsyncSession writes in a transaction that is rolled back."""
    pytester.makepyfile(SETUP + ASYNC_SESSION + ASYNC_TEST)

    pytester.runpytest_subprocess(*WITH_ASYNCIO).assert_outcomes(passed=2)


def test_async_sessions_with_anyio(pytester: pytest.Pytester) -> None:
    """With AnyIO's plugin, the same."""
    anyio = """
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
    pytester.makepyfile(SETUP + anyio + ASYNC_SESSION + ASYNC_TEST)

    pytester.runpytest_subprocess(*WITHOUT_ASYNCIO).assert_outcomes(passed=2)


def test_a_failure_shows_what_was_recorded(pytester: pytest.Pytester) -> None:
    """What fails is the assertion in the test, with the changes that there were instead; nothing of sqlaudit's."""
    failing = SYNC.replace('("a", "b"), by=None', '("a", "c"), by=42')
    pytester.makepyfile(SETUP + failing)

    result = pytester.runpytest_subprocess(*WITHOUT_ASYNCIO)

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: No change of Customer 1 is as expected:",
            "E *   update of Customer 1 by nobody: name from 'a' to 'b'",
            "E *     it was changed by nobody, not by 42",
            "E *     name was changed from 'a' to 'b', not from 'a' to 'c'",
        ]
    )
    result.stdout.no_fnmatch_line("*testing.py:*")


def test_a_missing_session_is_said(pytester: pytest.Pytester) -> None:
    """Without a fixture audit_session, the error says how there will be one."""
    pytester.makepyfile("def test_it(audit_recording): pass")

    result = pytester.runpytest_subprocess(*WITHOUT_ASYNCIO)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture audit_session that returns yours*"])


def test_tests_without_it_pay_nothing(pytester: pytest.Pytester) -> None:
    """Whoever doesn't use the plugin has neither sqlaudit nor SQLAlchemy imported by it."""
    pytester.makepyfile(
        "import sys\n"
        "def test_it():\n"
        "    assert 'sqlaudit_pytest' in sys.modules\n"
        "    assert [each for each in sys.modules if each.split('.')[0] in ('sqlaudit', 'sqlalchemy')] == []\n"
    )

    pytester.runpytest_subprocess(*WITHOUT_ASYNCIO).assert_outcomes(passed=1)
