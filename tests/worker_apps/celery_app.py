"""Jobs of Celery's for test_workers.py, and a program that asks for them."""

import asyncio
import os
from typing import Any

from celery import Celery, chain
from kombu import Queue

from asgi_apps.shop import add
from sqlaudit import audit_context
from sqlaudit.integrations.celery import install

app = Celery("worker_apps.celery_app", broker=os.environ["QUEUE_URL"])
app.conf.task_queues = [Queue(os.environ["QUEUE"], durable=False, auto_delete=True)]
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.worker_enable_remote_control = False
app.conf.task_ignore_result = True
install()


@app.task
def write(name: str) -> None:
    asyncio.run(add(name))


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def write_and_fail(self: Any, name: str) -> None:
    asyncio.run(add(name))
    raise self.retry(exc=RuntimeError(name))


@app.task
def ask_for_another(name: str) -> None:
    asyncio.run(add(f"{name} asking"))
    write.delay(f"{name} asked for")


@app.task
def run_another_at_once(name: str) -> None:
    write.apply((f"{name} inner",), task_id="job-7-inner")
    asyncio.run(add(f"{name} outer"))


def main() -> None:
    with audit_context(user_id="olena", reason="import", impersonated_by="admin", request_id="r-1"):
        write.apply_async(("plain",), task_id="job-1")
    with audit_context(user_id="petro"):
        write_and_fail.apply_async(("failing",), task_id="job-3")
        ask_for_another.apply_async(("nested",), task_id="job-4")
        chain(write.si("first").set(task_id="job-8"), write.si("second").set(task_id="job-9")).apply_async()
        run_another_at_once.apply_async(("eager",), task_id="job-7")
    write.apply_async(("nobody",), task_id="job-5")
    with audit_context(user_id="mallory"):
        write.apply_async(("broken",), task_id="job-6", headers={"sqlaudit": "forged"})
