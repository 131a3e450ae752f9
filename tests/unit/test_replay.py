"""Folding changes into states, and comparing values: pure decisions."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from sqlaudit._replay import MISSING, FieldDiff, Folded, StoredChange, folded, unwound


def change(number: int, operation: str, old: Any = None, new: Any = None) -> StoredChange:
    """Return a stored change."""
    return StoredChange(number, operation, old or {}, new or {})


LIFE = [
    change(1, "insert", None, {"a": 1, "b": 1}),
    change(2, "update", {"a": 1}, {"a": 2}),
    change(3, "delete", {"a": 2, "b": 1}, None),
    change(4, "baseline", None, {"a": 5, "b": 5}),
    change(5, "update", {"b": 5}, {"b": None}),
]
STATES: list[Any] = [None, {"a": 1, "b": 1}, {"a": 2, "b": 1}, None, {"a": 5, "b": 5}, {"a": 5, "b": None}]


@pytest.mark.parametrize("count", range(1, 6))
def test_changes_fold_into_the_state_after_them(count: int) -> None:
    """An insert or baseline begins a state, updates change it, a delete ends it."""
    assert folded(LIFE[:count]) == Folded(STATES[count], is_known=True, change_id=count)


def test_no_changes_tell_nothing() -> None:
    """Nothing is known of a row without changes."""
    assert folded([]) == Folded(None, is_known=False, change_id=None)


def test_updates_alone_do_not_tell_the_state() -> None:
    """What they don't mention is unknown; after a delete, too: the row came back unseen."""
    assert not folded([LIFE[1]]).is_known
    assert not folded([LIFE[2], LIFE[1]]).is_known


@pytest.mark.parametrize(("first", "last"), [(1, 3), (2, 3), (1, 1), (1, 2), (3, 3)])
def test_changes_unwind_to_the_state_before_them(first: int, last: int) -> None:
    """From the newest back: a delete tells the whole row, an insert that there was none."""
    before = unwound(reversed(LIFE[first - 1 : last]))

    assert before == Folded(STATES[first - 1], is_known=True, change_id=first)


def test_unwound_updates_tell_what_they_changed() -> None:
    """The oldest value counts, and the rest is unknown."""
    before = unwound([change(2, "update", {"a": 2}, {"a": 3}), change(1, "update", {"a": 1, "b": 1}, {"a": 2, "b": 2})])

    assert before == Folded({"a": 1, "b": 1}, is_known=False, change_id=1)


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def at(document: Any, path: tuple[Any, ...]) -> Any:
    """Return what is at a place of a document."""
    for step in path:
        if document is MISSING or (isinstance(document, list) and step >= len(document)):
            return MISSING
        document = document[step] if isinstance(document, list) else document.get(step, MISSING)
    return document


def is_same(one: Any, other: Any) -> bool:
    """Return whether two documents are one, for JSON: true isn't 1."""
    return repr(normal(one)) == repr(normal(other))


def normal(document: Any) -> Any:
    """Return a document with sorted keys."""
    if isinstance(document, dict):
        return {key: normal(document[key]) for key in sorted(document)}
    return [normal(each) for each in document] if isinstance(document, list) else document


@given(documents, documents)
def test_paths_lead_to_all_that_differs(old: Any, new: Any) -> None:
    """At each path are the values that are told, they differ, and without any the documents are one."""
    changes = FieldDiff(old, new).json_changes()

    for path, diff in changes.items():
        assert is_same(diff.old, at(old, path))
        assert is_same(diff.new, at(new, path))
        assert not is_same(diff.old, diff.new)
    assert (changes == {}) == is_same(old, new)


def test_paths_name_keys_and_indexes() -> None:
    """Through objects by key, through lists by place; what only one of them has is missing in the other."""
    diff = FieldDiff(
        {"address": {"city": "Kyiv", "zip": 1}, "l": [1, 2]}, {"address": {"city": "Lviv"}, "l": [1, 3, 4]}
    )

    assert diff.json_changes() == {
        ("address", "city"): FieldDiff("Kyiv", "Lviv"),
        ("address", "zip"): FieldDiff(1, MISSING),
        ("l", 1): FieldDiff(2, 3),
        ("l", 2): FieldDiff(MISSING, 4),
    }
    assert FieldDiff({"a": 1}, [1]).json_changes() == {(): FieldDiff({"a": 1}, [1])}


def test_texts_differ_by_lines() -> None:
    """The unified diff, without a header; None is empty, and so is what is missing."""
    diff = FieldDiff("a\nb\nc\nd", "a\nB\nc\nd")

    assert diff.text_diff(context=1) == "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c"
    assert FieldDiff(None, "a").text_diff() == "@@ -0,0 +1 @@\n+a"
    assert FieldDiff("a", MISSING).text_diff() == "@@ -1 +0,0 @@\n-a"
    assert FieldDiff("a", "a").text_diff() == ""
