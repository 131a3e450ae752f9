"""The arguments of a question, checked before any session is opened."""

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from typing import Any, get_args

from sqlaudit._statements import DateRange
from sqlaudit.exceptions import RetrievalError
from sqlaudit.types import Operation


def names_in(argument: str, names: Any) -> frozenset[str] | None:
    """
    Return the names that are given: one, or some.

    Raises:
        RetrievalError: they aren't.
    """
    if names is None:
        return None
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Collection) or not all(isinstance(name, str) for name in listed):
        raise RetrievalError(f"{argument} is {names!r}; expected a field's name or a list of them.")
    return frozenset(listed)


def resource_ids_in(resource_ids: Any) -> list[Any] | None:
    """Return the keys that are given; a tuple is one."""
    if resource_ids is None:
        return None
    return list(resource_ids) if isinstance(resource_ids, (list, set, frozenset)) else [resource_ids]


def user_ids_in(argument: str, user_ids: Any) -> frozenset[str | None] | None:
    """
    Return the text of the ids that are given: one, or some; None among them is nobody.

    Raises:
        RetrievalError: they are no ids.
    """
    if user_ids is None:
        return None
    listed = user_ids if isinstance(user_ids, (list, tuple, set, frozenset)) else [user_ids]
    for each in listed:
        if each is not None and (isinstance(each, bool) or not isinstance(each, (str, int, uuid.UUID))):
            raise RetrievalError(f"{argument} holds a {type(each).__name__}; expected a str, int or UUID.")
    return frozenset(None if each is None else str(each) for each in listed)


def date_range_in(argument: str, date_range: Any, zone: dt.tzinfo) -> DateRange:
    """
    Return a period as aware datetimes; naive ones are in *zone*.

    Raises:
        RetrievalError: it isn't one.
    """
    if date_range is None:
        return None, None
    if not isinstance(date_range, (tuple, list)) or len(date_range) != 2:
        raise RetrievalError(f"{argument} is {date_range!r}; expected a pair of datetimes, None for an open end.")
    for each in date_range:
        if each is not None and not isinstance(each, dt.datetime):
            raise RetrievalError(f"{argument} holds a {type(each).__name__}; expected a datetime or None.")
    # In UTC: in the hour that comes twice, datetimes of one zone are compared by the clock on the wall.
    start, end = (
        each if each is None else (each if each.tzinfo is not None else each.replace(tzinfo=zone)).astimezone(dt.UTC)
        for each in date_range
    )
    if start is not None and end is not None and start > end:
        raise RetrievalError(f"{argument} ends ({end}) before it starts ({start}); give the earlier one first.")
    return start, end


def id_range_in(argument: str, id_range: Any) -> tuple[int | None, int | None]:
    """
    Return a range of change ids.

    Raises:
        RetrievalError: it isn't one.
    """
    if id_range is None:
        return None, None
    if not isinstance(id_range, (tuple, list)) or len(id_range) != 2:
        raise RetrievalError(f"{argument} is {id_range!r}; expected a pair of change ids, None for an open end.")
    start, end = (whole_number_in(argument, each) for each in id_range)
    if start is not None and end is not None and start > end:
        raise RetrievalError(f"{argument} ends ({end}) before it starts ({start}); give the smaller one first.")
    return start, end


def whole_number_in(argument: str, value: Any, *, least: int = 0) -> int | None:
    """
    Return a whole number, or None.

    Raises:
        RetrievalError: it is neither, or less than *least*.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise RetrievalError(f"{argument} is {value!r}; expected a whole number from {least}, or None.")
    return value


def check_choice(argument: str, value: Any, choices: Any) -> None:
    """
    Refuse what isn't one of the strings of the `Literal` *choices*.

    Raises:
        RetrievalError: it isn't.
    """
    if value not in get_args(choices):
        raise RetrievalError(f"{argument} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}.")


def check_truth(argument: str, value: Any) -> None:
    """
    Refuse what isn't True or False.

    Raises:
        RetrievalError: it isn't.
    """
    if not isinstance(value, bool):
        raise RetrievalError(f"{argument} is {value!r}; expected True or False.")


def operations_in(operations: Any) -> frozenset[Operation] | None:
    """
    Return the operations that are given: one, or some.

    Raises:
        RetrievalError: there is no such operation.
    """
    if operations is None:
        return None
    listed = [operations] if isinstance(operations, str) else operations
    known = {each.value for each in Operation}
    if not isinstance(listed, Collection) or not all(isinstance(each, str) and each in known for each in listed):
        raise RetrievalError(f"operations is {operations!r}; expected some of {', '.join(sorted(known))}.")
    return frozenset(Operation(each) for each in listed)


def transaction_ids_in(transaction_ids: Any) -> frozenset[uuid.UUID] | None:
    """
    Return the transactions that are given: one, or some.

    Raises:
        RetrievalError: they are no UUIDs.
    """
    if transaction_ids is None:
        return None
    listed = [transaction_ids] if isinstance(transaction_ids, (str, uuid.UUID)) else transaction_ids
    try:
        if isinstance(listed, Collection):
            return frozenset(each if isinstance(each, uuid.UUID) else uuid.UUID(each) for each in listed)
    except (TypeError, ValueError, AttributeError):
        pass
    raise RetrievalError(f"transaction_id is {transaction_ids!r}; expected a UUID, its text, or a list of them.")


def mapping_in(argument: str, values: Any) -> dict[str, Any]:
    """
    Return values by name.

    Raises:
        RetrievalError: they have no names.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise RetrievalError(f"{argument} is a {type(values).__name__}; expected a mapping of names to values.")
    return dict(values)
