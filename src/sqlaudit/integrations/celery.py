"""
Who asked for a job of Celery's made the changes of it.

::

    app = Celery(...)
    install()

The audit context goes with the job in its header ``sqlaudit``: actor, impersonator, reason and facts. Where the job
runs, ``job_id`` and ``job_name`` are facts, too, and ``parent_job_id`` if another job asked for it: in a chain, the
one before. It is as trustworthy as the queue: whoever can write to that can say to be anybody.
"""

from typing import Any

from sqlaudit.exceptions import MissingExtraError
from sqlaudit.integrations._jobs import KEY, begin_job, end_job, export_for_job

try:
    from celery.signals import before_task_publish, task_postrun, task_prerun
except ImportError as missing:
    raise MissingExtraError(__name__, "celery") from missing

__all__ = ["install", "uninstall"]


def install() -> None:
    """
    Take the audit context with every job of this process, and put it around every job that it runs.

    To be called once, in the module of the Celery application, which those who ask for jobs and the workers import. A
    second call changes nothing. Celery's signals belong to the process, so that all of its applications are meant.

    A job that is tried again keeps the context that it had first; one that runs at once (``task_always_eager``,
    ``apply()``) has that of who calls it. What a schedule starts was asked for by nobody.
    """
    for sent, receiver in _RECEIVERS:
        sent.connect(receiver, weak=False, dispatch_uid=_uid(receiver))


def uninstall() -> None:
    """Undo `install`: jobs come and go without a context."""
    for sent, receiver in _RECEIVERS:
        sent.disconnect(dispatch_uid=_uid(receiver))


def _publish(*, headers: dict[str, Any], **_: Any) -> None:
    if KEY in headers:
        return
    try:
        headers[KEY] = export_for_job(headers["id"])
    except Exception as error:  # noqa: BLE001 Celery would log it and send the job, which nobody would have asked for
        headers[KEY] = {"error": f"{type(error).__name__}: {error}"}


def _begin(*, task_id: str, task: Any, **_: Any) -> None:
    # Beside Celery's own headers where a worker received it, among the given ones where it runs at once.
    exported = task.request.get(KEY) or (task.request.headers or {}).get(KEY)
    begin_job(exported, task_id, task.name)


def _end(*, task_id: str, **_: Any) -> None:
    end_job(task_id)


def _uid(receiver: Any) -> str:
    return f"{__name__}.{receiver.__name__}"


_RECEIVERS = [(before_task_publish, _publish), (task_prerun, _begin), (task_postrun, _end)]
