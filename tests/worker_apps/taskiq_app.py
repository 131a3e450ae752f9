"""Jobs of taskiq's for test_workers.py, and a program that asks for them."""

import asyncio
import os

from taskiq import SimpleRetryMiddleware
from taskiq_redis import ListQueueBroker

from asgi_apps.shop import add, add_in_thread
from sqlaudit import audit_context
from sqlaudit.integrations.taskiq import AuditTaskiqMiddleware

# It waits for jobs as long as there are none, whatever the driver's own limit is.
broker = ListQueueBroker(os.environ["QUEUE_URL"], queue_name=os.environ["QUEUE"], socket_timeout=None).with_middlewares(
    SimpleRetryMiddleware(default_retry_count=3), AuditTaskiqMiddleware()
)


@broker.task
async def write(name: str) -> None:
    await add(name)


@broker.task
def write_in_thread(name: str) -> None:
    # Not with an event loop of its own: an asynchronous engine belongs to one, here to the worker's.
    add_in_thread(name)


@broker.task(retry_on_error=True)
async def write_and_fail(name: str) -> None:
    await add(name)
    raise RuntimeError(name)


@broker.task
async def ask_for_another(name: str) -> None:
    await add(f"{name} asking")
    await write.kiq(f"{name} asked for")


async def ask() -> None:
    await broker.startup()
    with audit_context(user_id="olena", reason="import", impersonated_by="admin", request_id="r-1"):
        await write.kicker().with_task_id("job-1").kiq("plain")
        await write_in_thread.kicker().with_task_id("job-2").kiq("thread")
    with audit_context(user_id="petro"):
        await write_and_fail.kicker().with_task_id("job-3").kiq("failing")
        await ask_for_another.kicker().with_task_id("job-4").kiq("nested")
    await write.kicker().with_task_id("job-5").kiq("nobody")
    with audit_context(user_id="mallory"):
        await write.kicker().with_task_id("job-6").with_labels(sqlaudit="forged").kiq("broken")
    await broker.shutdown()


def main() -> None:
    asyncio.run(ask())
