"""What assertions about changes accept, and what they say when they fail."""

import datetime as dt
import uuid
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlaudit import Change, OldNew, Operation, track_table
from sqlaudit.exceptions import RetrievalError, UnknownFieldError, UntrackedError
from sqlaudit.testing import assert_changed, assert_unchanged


class Base(DeclarativeBase):
    pass


@track_table(["name", "by"], table_label="Client")
class Customer(Base):
    __tablename__ = "asserted_customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    by: Mapped[str]


@track_table()
class Order(Base):
    __tablename__ = "asserted_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


class Note(Base):
    __tablename__ = "asserted_note"

    id: Mapped[int] = mapped_column(primary_key=True)


def change(
    operation: str, model: type[Any], key: Any, by: Any = None, reason: str | None = None, **fields: Any
) -> Change:
    """Return a change as `recorded_changes` gives it."""
    return Change(
        change_id=1,
        transaction_id=uuid.uuid4(),
        timestamp=dt.datetime.now(dt.UTC),
        operation=Operation(operation),
        model=model,
        resource_type="Client" if model is Customer else model.__name__,
        resource_id=key,
        fields={name: OldNew(*pair) for name, pair in fields.items()},
        changed_by=by,
        impersonated_by=None,
        reason=reason,
        context={},
    )


RENAMED = change("update", Customer, 1, 42, "asked", name=("a", "b"))
PAID = change("insert", Order, 5, id=(None, 5), total=(None, 10))
CHANGES = [RENAMED, PAID]


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ((Customer, 1), {"name": ("a", "b")}),
        ((Customer, "1"), {"name": ("a", ...), "by": 42}),
        (Customer(id=1), {"name": (..., "b"), "by": "42", "reason": "asked"}),
        (Customer, {"operation": "update", "fields": {"name": ("a", "b")}}),
        ((Customer.__table__, 1), {"operation": Operation.UPDATE}),
        (Customer, {}),
    ],
)
def test_what_is_as_expected_passes(resource: Any, expected: dict[str, Any]) -> None:
    """An object, a model with a key, and a model are a resource; what isn't named doesn't matter."""
    assert assert_changed(CHANGES, resource, **expected) is RENAMED


def test_one_of_several_changes_is_enough() -> None:
    """The change that is as expected need not be the first of its row, and is returned."""
    again = change("update", Customer, 1, name=("b", "c"))

    assert assert_changed([RENAMED, again], (Customer, 1), name=("b", "c"), by=None, reason=None) is again


def failure(*arguments: Any, **expected: Any) -> str:
    """Return what `assert_changed` says."""
    with pytest.raises(AssertionError) as caught:
        assert_changed(*arguments, **expected)
    return str(caught.value)


def test_a_near_miss_is_explained() -> None:
    """The changes of the row are told with what differs, in words, and then the others."""
    told = failure(
        CHANGES, (Customer, 1), name=("a", "c"), fields={"by": ("x", ...)}, by=None, operation="delete", reason=None
    )

    assert told == (
        "No change of Customer 1 is as expected:\n"
        "  update of Client 1 by 42: name from 'a' to 'b'\n"
        "    the operation was update, not delete\n"
        "    it was changed by 42, not by nobody\n"
        "    the reason was 'asked', not None\n"
        "    by was not changed; expected from 'x' to anything\n"
        "    name was changed from 'a' to 'b', not from 'a' to 'c'\n"
        "Other changes were:\n"
        "  insert of Order 5 by nobody: id from None to 5, total from None to 10"
    )


def test_no_change_at_all_is_said() -> None:
    """Without a change of the row, all that was recorded is told, if anything was."""
    assert failure(CHANGES, (Customer, 2)) == (
        "There is no change of Customer 2. Recorded were:\n"
        "  update of Client 1 by 42: name from 'a' to 'b'\n"
        "  insert of Order 5 by nobody: id from None to 5, total from None to 10"
    )
    assert failure([], Customer, name=("a", "b")) == (
        "There is no change of Customer: nothing was recorded at all; see that register_hooks() was called for the "
        "session, and that it was flushed."
    )


def test_long_texts_are_compared_line_by_line() -> None:
    """Texts of several lines come with a diff."""
    told = failure([change("update", Customer, 1, name=("", "a\nb\nd"))], Customer, name=("", "a\nc\nd"))

    assert told.splitlines()[-4:] == ["        a", "      - c", "      + b", "        d"]


def test_what_has_not_changed_passes() -> None:
    """A row without a change, and a field that no change of the row tells of, are unchanged."""
    assert_unchanged(CHANGES, (Customer, 2))
    assert_unchanged(CHANGES, (Customer, 1), "by")
    assert_unchanged([], Order)


def test_what_was_to_stay_and_changed_is_said() -> None:
    """The failure names the changes."""
    with pytest.raises(AssertionError) as caught:
        assert_unchanged(CHANGES, Customer(id=1))
    assert str(caught.value) == (
        "Customer 1 was to stay as it is, but was changed:\n  update of Client 1 by 42: name from 'a' to 'b'"
    )
    with pytest.raises(AssertionError, match=r"^by, name of Customer was to stay"):
        assert_unchanged(CHANGES, Customer, "by", "name")


def test_misspelt_fields_are_refused() -> None:
    """A field that the trail never tells of would make any assertion meaningless."""
    with pytest.raises(UnknownFieldError, match="nmae"):
        assert_changed(CHANGES, Customer, nmae=("a", "b"))
    with pytest.raises(UnknownFieldError, match="nmae"):
        assert_unchanged(CHANGES, Customer, "nmae")


@pytest.mark.parametrize("pair", ["b", ["a", "b"], ("a",), ("a", "b", "c")])
def test_an_expectation_is_a_pair(pair: Any) -> None:
    """What is expected of a field is a tuple of the old and the new value."""
    with pytest.raises(TypeError, match=r"name is .*; expected a tuple"):
        assert_changed(CHANGES, Customer, name=pair)


@pytest.mark.filterwarnings("error")
def test_changes_come_first_and_awaited() -> None:
    """Changes that were not awaited, or not given, are told of, not compared."""

    async def changes() -> list[Change]:
        return CHANGES

    unawaited: Any = changes()
    nothing: Any = None

    with pytest.raises(TypeError, match=r"await \.\.\."):
        assert_changed(unawaited, Customer)
    with pytest.raises(TypeError, match="changes is a NoneType; expected the changes, and after them the resource"):
        assert_unchanged(nothing, Customer)
    with pytest.raises(TypeError, match="changes is a Customer"):
        assert_changed(Customer(id=1), CHANGES)  # type: ignore[arg-type]


def test_an_operation_is_one_that_there_is() -> None:
    """Any other could never be."""
    with pytest.raises(ValueError, match=r"operation is 'remove'; expected one of insert, update, delete, baseline\."):
        assert_changed(CHANGES, Customer, operation="remove")


def test_what_is_no_resource_is_refused() -> None:
    """Untracked models, and what is no model, are refused."""
    with pytest.raises(UntrackedError):
        assert_changed(CHANGES, Note)
    with pytest.raises(RetrievalError):
        assert_changed(CHANGES, "Customer")
    with pytest.raises(RetrievalError, match="no key that is known"):
        assert_unchanged(CHANGES, Customer())
