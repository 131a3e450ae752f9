"""The capture of statements: what a session sends beside the flush."""

from typing import Any, Final

from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase

from sqlaudit.exceptions import UncapturedStatementError
from sqlaudit.tracking import tracking_of

OPT_OUT_OPTION: Final = "sqlaudit"


def refuse_uncaptured(statement: UpdateBase, execution_options: Any, in_flush: bool) -> None:
    """
    Refuse a statement that would change tracked rows without a trail; nothing has been sent.

    Raises:
        UncapturedStatementError: its table is tracked, and the statement isn't opted out.
    """
    table: Any = statement.table
    if tracking_of(table) is None or execution_options.get(OPT_OUT_OPTION, True) is False:
        return
    raise UncapturedStatementError(_verb(statement), table.name, _remedy(statement, in_flush))


def _verb(statement: UpdateBase) -> str:
    for kind, verb in ((Insert, "An INSERT"), (Update, "An UPDATE"), (Delete, "A DELETE")):
        if isinstance(statement, kind):
            return f"{verb} statement"
    return "A statement"


def _remedy(statement: UpdateBase, in_flush: bool) -> str:
    if in_flush:
        return "map the table to a class of its own (an association object), or call track() before the table is mapped"
    if isinstance(statement, Insert):
        return "add mapped objects to the session (add(), add_all()) and flush"
    return "load the objects, change or delete() them, and flush"
