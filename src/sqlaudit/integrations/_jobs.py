"""The audit context of a job: taken where the job is asked for, and put around it where it runs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, NoReturn

from sqlaudit.context import asked_context, export_audit_context, import_audit_context
from sqlaudit.exceptions import ContextError

__all__ = ["KEY", "begin_job", "end_job", "export_for_job"]

KEY: Final = "sqlaudit"
"""Under which name the context stands among what comes with a job."""

_Running = tuple[tuple[str, AbstractContextManager[Any]], ...]
_running: ContextVar[_Running] = ContextVar("sqlaudit_jobs", default=())


def export_for_job(job_id: str) -> dict[str, Any]:
    """Return what goes with the job: the present context, and, if a job asks for it, which."""
    exported = export_audit_context()
    facts = dict(exported.get("facts", {}))
    asking = facts.pop("job_id", None)
    for of_asking in ("job_name", "parent_job_id"):
        facts.pop(of_asking, None)
    if asking is not None and asking != job_id:
        facts["parent_job_id"] = asking
    return {**exported, "facts": facts}


def begin_job(exported: object, job_id: str, job_name: str) -> None:
    """
    Put the context that came with a job around what runs now, until `end_job`.

    A context that can't be believed lets the job run, but nothing that would be recorded under it be written:
    the frameworks of jobs would swallow an error that is raised here.
    """
    block: AbstractContextManager[Any]
    try:
        block = import_audit_context(_checked(exported), job_id=job_id, job_name=job_name)
        block.__enter__()
    except ContextError as error:
        block = asked_context(_Refusal(f"The context that came with the job {job_name} {job_id}: {error}"))
        block.__enter__()
    _running.set((*_running.get(), (job_id, block)))


def end_job(job_id: str) -> None:
    """Put back what was before the job began."""
    running = _running.get()
    # Jobs run within jobs where a queue runs them at once; one that has failed to end goes with the one around it.
    for place in reversed(range(len(running))):
        if running[place][0] == job_id:
            _running.set(running[:place])
            running[place][1].__exit__(None, None, None)
            return


def _checked(exported: object) -> Mapping[str, Any]:
    if exported is None:
        return {}
    if isinstance(exported, Mapping) and "error" in exported:
        raise ContextError(f"It could not be taken when the job was asked for: {exported['error']}.")
    return exported  # type: ignore[return-value]


class _Refusal:
    def __init__(self, message: str) -> None:
        self._message = message

    def __call__(self) -> NoReturn:
        raise ContextError(self._message)
