"""What is asked of JSON on the databases that the other tests don't reach yet."""

import pytest
from sqlalchemy import Dialect
from sqlalchemy.dialects.mysql.base import MySQLDialect
from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect

from sqlaudit import trail_table
from sqlaudit._counts import count_by
from sqlaudit._documents import has_key, has_value

TRAIL = trail_table()
COLUMN = "sqlaudit_change.new_values"


def mariadb() -> Dialect:
    """Return the dialect as it is when it has met a server."""
    dialect = MariaDBDialect()
    dialect.is_mariadb = True
    return dialect


@pytest.mark.parametrize("dialect", [mariadb(), MySQLDialect()])
def test_a_key_is_looked_for(dialect: Dialect) -> None:
    """A key that is there with null is there."""
    sql = has_key(TRAIL.c.new_values, "a").compile(dialect=dialect, compile_kwargs={"literal_binds": True})

    assert str(sql) == f"json_contains_path({COLUMN}, 'one', '$.\"a\"')"


def test_values_are_compared_as_documents() -> None:
    """Not as text: MariaDB has a function for it, MySQL a type."""
    criterion = has_value(TRAIL.c.new_values, "a", {"b": 1})

    ours, theirs = (
        str(criterion.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        for dialect in (mariadb(), MySQLDialect())
    )

    value = "'{\"b\": 1}'"
    assert ours == f"coalesce(json_equals(json_extract({COLUMN}, '$.\"a\"'), {value}), 0)"
    assert theirs == f"coalesce(json_extract({COLUMN}, '$.\"a\"') = CAST({value} AS JSON), 0)"


def test_days_are_counted_without_the_zones_of_the_server() -> None:
    """The moments are UTC, and the zone's distance is given."""
    sql = str(count_by(TRAIL, TRAIL.c.id > 0, "day", ()).compile(dialect=mariadb()))

    assert "((TIMESTAMPDIFF(SECOND, '1970-01-01', sqlaudit_change.recorded_at) + %s) DIV 86400) AS counted" in sql
