"""
Who asked for a job of taskiq's made the changes of it.

::

    broker = ListQueueBroker(url).with_middlewares(AuditTaskiqMiddleware())

The audit context goes with the job in its label ``sqlaudit``: actor, impersonator, reason and facts. Where the job
runs, ``job_id`` and ``job_name`` are facts, too, and ``parent_job_id`` if another job asked for it. It is as
trustworthy as the queue: whoever can write to that can say to be anybody.
"""

import json
from typing import Any

from sqlaudit.exceptions import MissingExtraError
from sqlaudit.integrations._jobs import KEY, begin_job, end_job, export_for_job

try:
    from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
except ImportError as missing:
    raise MissingExtraError(__name__, "taskiq") from missing

__all__ = ["AuditTaskiqMiddleware"]


class AuditTaskiqMiddleware(TaskiqMiddleware):
    """
    Take the audit context to the worker: for the broker, which is the same where jobs are asked for and where they run.

    A job that is tried again keeps the context that it had first. What a schedule starts was asked for by nobody.
    """

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Runs where a job is asked for."""
        if KEY not in message.labels:
            message.labels[KEY] = json.dumps(export_for_job(message.task_id))
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Runs where the job does, before it."""
        begin_job(_loaded(message.labels.get(KEY)), message.task_id, message.task_name)
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Runs where the job did, after it, and after what its failure led to."""
        end_job(message.task_id)


def _loaded(label: object) -> object:
    if not isinstance(label, str):
        return label
    try:
        return json.loads(label)
    except ValueError:
        return label
