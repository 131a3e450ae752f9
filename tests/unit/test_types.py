"""What users receive: frozen values, detached from everything."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from sqlaudit import (
    MASKED,
    FieldChange,
    Operation,
    SQLAuditConfig,
    audit_context,
    get_resource_changes_sync,
    register_hooks,
    track_table,
)
from sqlaudit.types import Masked


class Base(DeclarativeBase):
    pass


@track_table(["name"])
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(name="change")
def _change() -> FieldChange:
    """Return a field change as retrieval gives it."""
    config = SQLAuditConfig()
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session, register_hooks(session, config=config), audit_context(user_id=1, ticket="T-1"):
        session.add(Customer(id=7, name="a"))
        session.commit()
        (change,) = get_resource_changes_sync(Customer, 7, session, config=config)
    engine.dispose()
    return change


def test_a_field_change_cannot_be_changed(change: FieldChange) -> None:
    """What was found in the trail is a fact: assigning to it is an error."""
    name: Any = "old_value"

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(change, name, "c")

    assert change.old_value is None
    assert change.new_value == "a"


def test_a_field_change_can_be_made_a_dict(change: FieldChange) -> None:
    """dataclasses.asdict() gives what a JSON API may answer with."""
    answer = dataclasses.asdict(change)

    assert answer["field_name"] == "name"
    assert answer["context"] == {"ticket": "T-1"}


def test_a_field_change_can_be_pickled(change: FieldChange) -> None:
    """What was found in the trail can be put into a cache, or sent to another process."""
    again = pickle.loads(pickle.dumps(change))

    assert again == change


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda mark: pickle.loads(pickle.dumps(mark))])
def test_there_is_one_mark_of_masked_values(again: Any) -> None:
    """Copies of MASKED, pickled ones too, are MASKED itself, so that it can be compared with `is`."""
    mark = again(MASKED)

    assert mark is MASKED


def test_a_masked_value_is_false_and_says_what_it_is() -> None:
    """A withheld value isn't mistaken for one that is there."""
    mark = MASKED

    assert isinstance(mark, Masked)
    assert not mark
    assert repr(mark) == str(mark) == "<masked>"


def test_a_masked_value_can_be_sent_as_json() -> None:
    """Histories with withheld values can be the answer of a FastAPI endpoint as they are."""
    sent = TypeAdapter(Any).dump_json([MASKED])

    assert sent == b'["<masked>"]'


def test_an_operation_is_its_word() -> None:
    """Operations compare equal to, and are written as, the words of the trail."""
    words = [f"{operation}" for operation in Operation]

    assert words == ["insert", "update", "delete", "baseline"]
