"""Laws 3, 7 and 10 for every column type: what is told of a value is what the row reads back, value and Python type."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from sqlalchemy.dialects import mysql, postgresql, sqlite

from conformance_setup import Maker, capture_of_tests
from sqlaudit import Capture
from sqlaudit.exceptions import TrackingError
from type_cases import CASES, CONTRIB, ONCE_WRONG, TypeCase
from type_lives import MOMENTS, Subject, audited, check, lives_of_edges

# SQLAlchemy 2.1 says so of types of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Type object .* does not refer to an OperatorClass")


def _groups() -> list[Any]:
    """Return each group of types on each database that has some of them."""
    groups = {
        (database, group): [case for case in cases if database in case.databases]
        for group, cases in CASES.items()
        for database in ("sqlite", "postgresql", "mariadb")
    }
    return [
        pytest.param(database, cases, id=f"{database}-{group}") for (database, group), cases in groups.items() if cases
    ]


WITHOUT_TRIGGERS = {"sqlite.DATE"}
"""What triggers refuse to record, because Python alone knows the format."""


@pytest.fixture(name="subject")
async def _subject(maker: Maker, cases: Sequence[TypeCase]) -> Subject:
    if capture_of_tests() is Capture.TRIGGERS:
        cases = [case for case in cases if case.name not in WITHOUT_TRIGGERS]
    return await audited(cases, maker)


@pytest.mark.parametrize(("database", "cases"), _groups(), indirect=["database"])
async def test_the_edges_of_every_type_are_told_as_they_read(subject: Subject) -> None:
    """NULL, empty, extreme and non-ASCII values of a type are told as they read back, however they are written."""
    await check(subject, lives_of_edges(subject.cases))


@pytest.mark.session_capture
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("case", [case for case in CASES["own of sqlite"] if case.name in WITHOUT_TRIGGERS], ids=repr)
async def test_what_triggers_cannot_write_is_refused(case: TypeCase, maker: Maker, monkeypatch: Any) -> None:
    """A type whose values only Python can write in the trail is refused when its triggers would be made."""
    monkeypatch.setenv("SQLAUDIT_TEST_CAPTURE", Capture.TRIGGERS)
    with pytest.raises(TrackingError, match=r"thing\.c0 .*capture=Capture\.SESSION"):
        await audited([case], maker)


_settings = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def _rows(cases: Sequence[TypeCase]) -> st.SearchStrategy[list[tuple[list[Any], ...]]]:
    life = (st.lists(case.values, min_size=MOMENTS, max_size=MOMENTS) for case in cases)
    return st.lists(st.tuples(*life), min_size=1, max_size=3)


@pytest.mark.parametrize(("database", "cases"), _groups(), indirect=["database"])
@_settings
@given(data=st.data())
async def test_any_values_of_every_type_are_told_as_they_read(subject: Subject, data: st.DataObject) -> None:
    """Any values of a type are told as they read back, however they are written."""
    await check(subject, data.draw(_rows(subject.cases)))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_types_of_extensions_are_told_as_they_read(contrib_maker: Maker) -> None:
    """The values of HSTORE and CITEXT, equal or not but for their case, are told as they read back."""
    await check(await audited(CONTRIB, contrib_maker), lives_of_edges(CONTRIB))


@pytest.fixture(name="contrib_subject")
async def _contrib_subject(contrib_maker: Maker) -> Subject:
    return await audited(CONTRIB, contrib_maker)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@_settings
@given(rows=_rows(CONTRIB))
async def test_any_values_of_types_of_extensions_are_told_as_they_read(contrib_subject: Subject, rows: Any) -> None:
    """Any values of HSTORE and CITEXT are told as they read back."""
    await check(contrib_subject, rows)


WITHOUT_COLUMNS = {"MatchType", "NullType", "PickleType", "TupleType", "UserDefinedType", "Variant"}
"""Types that no column has, or whose columns are refused."""

ELSEWHERE = {"INET4", "INET6"}
"""Types that are tried in test_types_defects.py."""

IF_THE_DATABASE_HAS_IT = {"JSONB"} if sqlite3.sqlite_version_info < (3, 45) else set()


@pytest.mark.parametrize(
    "module", [sa.types, postgresql, mysql, sqlite], ids=["generic", "postgresql", "mysql", "sqlite"]
)
def test_every_type_of_sqlalchemy_is_tried(module: Any) -> None:
    """No type that SQLAlchemy has, today or tomorrow, is left out; for a base stands a type that has it."""
    tried = {type(case.make()) for cases in (*CASES.values(), CONTRIB, *ONCE_WRONG.values()) for case in cases}
    left_out = {
        name
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, sa.types.TypeEngine)
        if not any(issubclass(one, each) for one in tried)
    }

    assert left_out - WITHOUT_COLUMNS - ELSEWHERE - IF_THE_DATABASE_HAS_IT == set()
