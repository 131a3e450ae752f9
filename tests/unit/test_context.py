"""Who acts, and why: setting it, nesting it, and getting back what was before."""

import asyncio
import contextlib
import contextvars
import dataclasses
import enum
import json
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from sqlaudit import (
    AuditContext,
    AuditContextManager,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    export_audit_context,
    get_audit_context,
    import_audit_context,
    set_audit_context,
)
from sqlaudit.context import MAX_FACTS_BYTES, asked_context, context_of, later_context
from sqlaudit.exceptions import ContextError


class SystemUser(enum.IntEnum):
    CRON = 7


# --- setting and clearing --------------------------------------------------------------------------------------------


def test_without_a_context_nobody_acts() -> None:
    """Before anything is set, there are no user, no reason and no facts."""
    context = get_audit_context()

    assert context == AuditContext(user_id=None, reason=None, impersonated_by=None, facts={})


def test_what_is_set_is_what_is_got() -> None:
    """The context that was set is returned, and holds from then on."""
    context = set_audit_context(user_id=1, reason="why", impersonated_by="root", ticket="T-1")

    assert context == AuditContext(user_id=1, reason="why", impersonated_by="root", facts={"ticket": "T-1"})
    assert get_audit_context() is context


def test_setting_replaces_all_that_was_set() -> None:
    """A context that is set inherits nothing from the one before."""
    set_audit_context(user_id=1, reason="why", impersonated_by=2, ticket="T-1")

    set_audit_context(user_id=3)

    assert get_audit_context() == AuditContext(user_id=3)


def test_clearing_forgets_who_acts() -> None:
    """After clearing, nobody acts."""
    set_audit_context(user_id=1, reason="why", ticket="T-1")

    clear_audit_context()

    assert get_audit_context() == AuditContext()


def test_clearing_within_a_block_holds_until_its_end() -> None:
    """What is cleared within a block is back when the block has ended."""
    with audit_context(user_id=1):
        with audit_context(user_id=2):
            clear_audit_context()
            within = get_audit_context().user_id
        after = get_audit_context().user_id

    assert (within, after) == (None, 1)


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_a_block_has_its_context_and_gives_it() -> None:
    """Within a block its context holds, which is also what the block is entered as."""
    with audit_context(user_id=1, reason="why", impersonated_by=2, ticket="T-1") as context:
        within = get_audit_context()

    assert within is context
    assert within == AuditContext(user_id=1, reason="why", impersonated_by=2, facts={"ticket": "T-1"})


def test_after_a_block_the_context_before_is_back() -> None:
    """What was set before a block holds after it."""
    before = set_audit_context(user_id=1)

    with audit_context(user_id=2):
        pass

    assert get_audit_context() is before


def test_after_an_exception_the_context_before_is_back() -> None:
    """A block that ends by an exception gives back what was before, and lets the exception through."""
    before = set_audit_context(user_id=1)

    with pytest.raises(ZeroDivisionError), audit_context(user_id=2):
        raise ZeroDivisionError

    assert get_audit_context() is before


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ({}, AuditContext(user_id=1, reason="outer", impersonated_by=2, facts={"a": 1})),
        ({"user_id": 3}, AuditContext(user_id=3, reason="outer", impersonated_by=2, facts={"a": 1})),
        ({"reason": "inner"}, AuditContext(user_id=1, reason="inner", impersonated_by=2, facts={"a": 1})),
        ({"impersonated_by": 4}, AuditContext(user_id=1, reason="outer", impersonated_by=4, facts={"a": 1})),
        ({"b": 2}, AuditContext(user_id=1, reason="outer", impersonated_by=2, facts={"a": 1, "b": 2})),
        ({"a": 3}, AuditContext(user_id=1, reason="outer", impersonated_by=2, facts={"a": 3})),
        ({"a": None}, AuditContext(user_id=1, reason="outer", impersonated_by=2, facts={"a": None})),
    ],
    ids=["nothing", "user_id", "reason", "impersonated_by", "another fact", "the same fact", "the same fact as None"],
)
def test_an_inner_block_inherits_what_it_does_not_set(inner: dict[str, Any], expected: AuditContext) -> None:
    """What an inner block doesn't say it has from the outer one; facts are merged, the inner ones win."""
    with audit_context(user_id=1, reason="outer", impersonated_by=2, a=1), audit_context(**inner):
        context = get_audit_context()

    assert context == expected


def test_an_outer_block_knows_nothing_of_an_inner_one() -> None:
    """After an inner block, the outer one is as it was, facts too."""
    with audit_context(user_id=1, a=1):
        with audit_context(reason="inner", a=2, b=3):
            pass
        context = get_audit_context()

    assert context == AuditContext(user_id=1, facts={"a": 1})


def test_a_falsy_user_is_a_user() -> None:
    """User 0 and an empty reason are not taken for something that wasn't said."""
    with audit_context(user_id=1, reason="outer"), audit_context(user_id=0, reason=""):
        context = get_audit_context()

    assert (context.user_id, context.reason) == (0, "")


def test_a_block_can_be_entered_again_within_itself() -> None:
    """One manager may be entered several times, and each exit gives back what was before its entry."""
    manager = audit_context(user_id=1)

    with manager:
        set_audit_context(user_id=2)
        with manager:
            inner = get_audit_context().user_id
        outer = get_audit_context().user_id

    assert (inner, outer, get_audit_context().user_id) == (1, 2, None)


def test_a_block_inherits_where_it_is_entered() -> None:
    """A manager that was made elsewhere inherits from the block that it is entered in."""
    manager = audit_context(reason="why")

    with audit_context(user_id=1), manager:
        context = get_audit_context()

    assert context == AuditContext(user_id=1, reason="why")


def test_the_names_of_the_manager_are_one_thing() -> None:
    """`audit_context` is the everyday name of `AuditContextManager`."""
    assert audit_context is AuditContextManager


# --- tasks, threads, copies of the context ---------------------------------------------------------------------------


def test_closing_in_another_copy_of_the_context_is_no_error() -> None:
    """A block that is closed in another copy than it was opened in, as FastAPI's are, puts that copy right."""
    before = set_audit_context(user_id=1)
    stack = contextlib.ExitStack()
    elsewhere = contextvars.copy_context()
    elsewhere.run(stack.enter_context, audit_context(user_id=2))
    copy = elsewhere.copy()

    copy.run(stack.close)

    assert copy.run(get_audit_context) is before
    assert get_audit_context() is before


async def test_tasks_do_not_see_each_others_context() -> None:
    """Each task has the context that it set itself, whatever others set meanwhile."""
    all_have_set = asyncio.Barrier(3)

    async def act(user_id: int) -> Any:
        set_audit_context(user_id=user_id)
        await all_have_set.wait()
        return get_audit_context().user_id

    acted = await asyncio.gather(*map(act, range(3)))

    assert acted == [0, 1, 2]
    assert get_audit_context().user_id is None


async def test_a_task_has_the_context_that_it_was_started_in() -> None:
    """A task that is started within a block keeps the block's context, also when the block has ended."""
    ended = asyncio.Event()

    async def act() -> Any:
        await ended.wait()
        return get_audit_context().user_id

    with audit_context(user_id=1):
        task = asyncio.create_task(act())
    ended.set()

    assert await task == 1


async def test_to_thread_takes_the_context_along() -> None:
    """Work that asyncio hands to a thread has the context of its task."""
    with audit_context(user_id=1):
        context = await asyncio.to_thread(get_audit_context)

    assert context.user_id == 1


def test_a_plain_thread_has_no_context() -> None:
    """A thread that is started by hand begins with nobody."""
    found: list[AuditContext] = []
    set_audit_context(user_id=1)
    thread = threading.Thread(target=contextvars.Context().run, args=(lambda: found.append(get_audit_context()),))

    thread.start()
    thread.join()

    assert found == [AuditContext()]


async def test_tasks_that_share_a_manager_do_not_share_what_was_before() -> None:
    """A manager that several tasks enter at a time gives each task back its own context."""
    system = audit_context(user_id="system")
    entered, entered_too = asyncio.Event(), asyncio.Event()

    async def first() -> Any:
        set_audit_context(user_id="first")
        with system:
            entered.set()
            await entered_too.wait()
        return get_audit_context().user_id

    async def second() -> Any:
        await entered.wait()
        set_audit_context(user_id="second")
        with system:
            entered_too.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return get_audit_context().user_id

    acted = await asyncio.gather(first(), second())

    assert acted[0] == "first"
    assert acted[1] == "second"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["user_id", "impersonated_by"])
@pytest.mark.parametrize("value", ["u-1", 0, -1, uuid.UUID(int=1), None, SystemUser.CRON], ids=repr)
def test_a_user_is_a_str_int_uuid_or_none(argument: str, value: Any) -> None:
    """Every kind of id that the trail can hold is accepted as it is."""
    context = AuditContext(**{argument: value})

    assert getattr(context, argument) is value


@pytest.mark.parametrize("argument", ["user_id", "impersonated_by"])
@pytest.mark.parametrize("value", [True, 1.5, b"1", object(), [1]], ids=lambda value: type(value).__name__)
def test_a_user_of_another_type_is_refused(argument: str, value: Any) -> None:
    """An id that is no id is refused when the context is made; the error names the argument and the types."""
    with pytest.raises(ContextError) as caught:
        audit_context(**{argument: value})

    assert str(caught.value) == f"{argument} is a {type(value).__name__}; expected a str, int, UUID or None."


@pytest.mark.parametrize("argument", ["user_id", "impersonated_by"])
def test_an_empty_user_is_refused(argument: str) -> None:
    """An empty string names nobody, and isn't taken for somebody."""
    with pytest.raises(ContextError) as caught:
        set_audit_context(**{argument: ""})

    assert str(caught.value) == f"{argument} is an empty string; expected an id, or None for nobody."


@pytest.mark.parametrize("argument", ["user_id", "impersonated_by"])
def test_a_user_that_the_trail_cannot_hold_is_refused(argument: str) -> None:
    """An id that is longer than its column in the trail is refused before anything is written."""
    arguments: dict[str, Any] = {argument: "x" * 256}

    with pytest.raises(ContextError, match="255"):
        AuditContext(**arguments)


@pytest.mark.parametrize("reason", [1, b"why", ["why"]], ids=type)
def test_a_reason_that_is_no_text_is_refused(reason: Any) -> None:
    """A reason is words, or None."""
    with pytest.raises(ContextError) as caught:
        AuditContext(reason=reason)

    assert str(caught.value) == f"reason is a {type(reason).__name__}; expected a str or None."


@pytest.mark.parametrize(
    "fact",
    [object(), {1, 2}, b"x", float("nan"), float("inf"), "\ud800", uuid.UUID(int=1)],
    ids=["object", "set", "bytes", "nan", "inf", "surrogate", "UUID"],
)
def test_a_fact_that_is_no_json_is_refused(fact: Any) -> None:
    """A fact that JSON can't hold is refused, by name, and with what can be given instead."""
    with pytest.raises(ContextError, match=r"facts bad, good can't be stored as JSON: .+; give str, int, float, bool"):
        audit_context(good=1, bad=fact)


def test_a_fact_that_holds_itself_is_refused() -> None:
    """A list within itself is no JSON."""
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ContextError, match="can't be stored as JSON"):
        AuditContext(facts={"endless": endless})


@pytest.mark.parametrize(("letter", "number"), [("x", 8183), ("é", 4091)], ids=["ascii", "utf-8"])
def test_facts_may_be_8_kib(letter: str, number: int) -> None:
    """Facts of 8 KiB of JSON in UTF-8 are accepted, and not a letter more."""
    fitting = AuditContext(facts={"k": letter * number})

    size = len(json.dumps(dict(fitting.facts), ensure_ascii=False).encode())
    assert size in (MAX_FACTS_BYTES, MAX_FACTS_BYTES - 1)
    assert MAX_FACTS_BYTES == 8192
    with pytest.raises(ContextError, match=rf"The extra facts k are {size + len(letter.encode())} bytes of JSON"):
        AuditContext(facts={"k": letter * (number + 1)})


def test_facts_that_are_too_large_together_are_refused() -> None:
    """Facts that are too large once they are merged are refused at the inner block, which isn't entered."""
    with audit_context(user_id=1, a="x" * 5000):
        with pytest.raises(ContextError, match="keep large things elsewhere"), audit_context(b="x" * 5000):
            pass  # pragma: no cover
        context = get_audit_context()

    assert set(context.facts) == {"a"}


def test_facts_with_numbers_for_names_that_are_too_large_are_refused_as_such() -> None:
    """The error about the size is raised whatever the names of the facts are."""
    facts: Any = {1: "x" * 9000}

    with pytest.raises(ContextError, match="bytes of JSON"):
        AuditContext(facts=facts)


def test_facts_that_are_no_mapping_are_refused() -> None:
    """Facts are a mapping; anything else is a ContextError that says so."""
    facts: Any = 5

    with pytest.raises(ContextError):
        AuditContext(facts=facts)


def test_what_is_refused_changes_nothing() -> None:
    """After a refusal, the context is the one that it was."""
    before = set_audit_context(user_id=1)

    with pytest.raises(ContextError):
        set_audit_context(user_id="")

    assert get_audit_context() is before


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_a_block_that_can_not_be_entered_has_no_actor() -> None:
    """Where asking for the rest fails, neither a block nor a set context is left behind: nobody would end it."""
    fails = True

    def ask() -> AuditContext:
        if fails:
            raise LookupError("no such session")
        return AuditContext(reason="asked")

    with asked_context(ask):
        with pytest.raises(LookupError), audit_context(user_id=42):
            pytest.fail("The block was entered.")
        with pytest.raises(LookupError):
            set_audit_context(user_id=42)

        fails = False
        assert get_audit_context() == AuditContext(reason="asked")


def test_a_context_cannot_be_changed() -> None:
    """Neither the fields of a context nor its facts can be assigned."""
    context = AuditContext(user_id=1, facts={"a": 1})
    facts: Any = context.facts

    with pytest.raises(dataclasses.FrozenInstanceError):
        context.user_id = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        facts["a"] = 2
    assert context == AuditContext(user_id=1, facts={"a": 1})


def test_facts_are_a_copy() -> None:
    """What happens to the given facts afterwards, at any depth, doesn't happen to the context."""
    facts: dict[str, Any] = {"tags": ["a"]}
    context = AuditContext(facts=facts)

    facts["tags"].append("b")
    facts["more"] = 1

    assert context.facts == {"tags": ["a"]}


def test_facts_are_as_they_come_back_from_the_trail() -> None:
    """Facts are normalised to what JSON gives back: tuples are lists, keys are text."""
    context = AuditContext(facts={"pair": (1, 2), "by_number": {1: "a"}})

    assert context.facts == {"pair": [1, 2], "by_number": {"1": "a"}}


def test_facts_are_read_only_also_if_there_are_none() -> None:
    """A context without facts has an empty mapping that stays empty."""
    facts: Mapping[str, Any] = AuditContext().facts

    assert facts == {}
    assert not hasattr(facts, "__setitem__")


# --- bound to a session ----------------------------------------------------------------------------------------------


def test_what_is_bound_to_a_session_goes_before_the_contextvar() -> None:
    """What the session's own context doesn't say is taken from the running task's."""
    session = Session()
    bind_audit_context(session, user_id=1, a=1)

    with audit_context(user_id=2, reason="why", a=2, b=2):
        context = context_of(session)

    assert context == AuditContext(user_id=1, reason="why", facts={"a": 1, "b": 2})


def test_binding_again_without_arguments_ends_the_binding() -> None:
    """A session that nothing is bound to any more has the context of the task."""
    session = Session()
    bind_audit_context(session, user_id=1)

    bind_audit_context(session)

    with audit_context(user_id=2):
        assert context_of(session).user_id == 2


def test_another_session_is_not_bound() -> None:
    """A context that is bound to one session is nothing to another."""
    session, other = Session(), Session()

    bind_audit_context(session, user_id=1)

    assert context_of(other).user_id is None


def test_what_is_bound_to_an_async_session_holds_for_the_one_under_it() -> None:
    """Binding to an AsyncSession is binding to the session that flushes."""
    session = AsyncSession()

    bind_audit_context(session, user_id=1)

    assert context_of(session.sync_session).user_id == 1


def test_who_began_the_transaction_acts_when_nobody_else_is_known() -> None:
    """The context at the beginning of the transaction is asked only where the present one names no user."""
    session = Session()
    with audit_context(user_id=1, reason="began"):
        began_with = later_context()

    nobody = context_of(session, began_with)
    with audit_context(user_id=2):
        somebody = context_of(session, began_with)

    assert (nobody.user_id, nobody.reason) == (1, "began")
    assert (somebody.user_id, somebody.reason) == (2, None)


def test_a_bad_context_is_not_bound() -> None:
    """What is refused when binding leaves the session as it was."""
    session = Session()

    with pytest.raises(ContextError):
        bind_audit_context(session, user_id="")

    assert context_of(session) == AuditContext()


# --- to another process ----------------------------------------------------------------------------------------------


def test_a_context_travels_as_json() -> None:
    """What is exported is JSON, and gives the same context elsewhere; a UUID becomes its text, as in the trail."""
    id_ = uuid.uuid4()
    with audit_context(user_id=id_, reason="why", impersonated_by=7, ticket="T-1", tags=["a"]):
        message = json.dumps(export_audit_context())

    with import_audit_context(json.loads(message), job_id="j-1") as context:
        assert get_audit_context() is context

    assert context == AuditContext(
        user_id=str(id_), reason="why", impersonated_by=7, facts={"ticket": "T-1", "tags": ["a"], "job_id": "j-1"}
    )
    assert get_audit_context() == AuditContext()


def test_nothing_travels_as_an_empty_dict() -> None:
    """Where nothing is known, nothing is exported, and importing it leaves the context around as it is."""
    assert export_audit_context() == {}

    with audit_context(user_id=1), import_audit_context({}) as context:
        assert context == AuditContext(user_id=1)


@pytest.mark.parametrize("session", [3, None, sessionmaker(), Session])
def test_only_a_session_is_bound(session: Any) -> None:
    """What makes sessions is none."""
    with pytest.raises(
        ContextError, match=f"session is a {type(session).__name__}; expected an AsyncSession or a Session"
    ):
        bind_audit_context(session, user_id=1)


@pytest.mark.parametrize(
    "exported",
    [
        *(None, "x", [], {"facts": "x"}, {"user_id": 1.5}, {"reason": 1}, {"facts": {"a": "x" * MAX_FACTS_BYTES}}),
        *({"userid": 1}, {"user_id": 1, "error": "x"}, {1: 2}),
    ],
)
def test_what_was_not_exported_is_refused(exported: Any) -> None:
    """A context that can't be believed isn't left out: nobody would know who acted."""
    with pytest.raises(ContextError):
        import_audit_context(exported)


def test_a_fact_that_came_with_a_job_sets_no_user() -> None:
    """Who acts is said in one place, whatever the facts are called."""
    with import_audit_context({"user_id": 1, "facts": {"user_id": 2, "reason": "x"}}) as context:
        assert (context.user_id, context.reason) == (1, None)
