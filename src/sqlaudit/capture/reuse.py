"""Statements of ours that are executed again and again."""

from typing import Any, TypeVar

from sqlalchemy import Executable

__all__ = ["reusable"]

Statement = TypeVar("Statement", bound=Executable)


def reusable(statement: Statement) -> Statement:
    """
    Return *statement*, by which its compiled form is found at once.

    SQLAlchemy makes the key of its cache anew for each execution, of some
    statements: a third of the time of a small one.
    """
    reused: Any = statement
    key = reused._generate_cache_key()  # noqa: SLF001 (what MemoizedHasCacheKey does for other statements)
    reused._generate_cache_key = lambda: key  # noqa: SLF001 (as above)
    return statement
