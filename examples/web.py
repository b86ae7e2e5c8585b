"""A web service that starts durable executions and runs them too, in the same event loop.

    pip install fastapi uvicorn
    DATABASE_URL=postgresql://... uvicorn examples.web:app

`zart migrate` first: without zart's tables the service does not start. More processes of it share the work; so do
`zart-runner` processes on the same database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request

import zart
from examples.onboarding import Signup, onboarding

registry = zart.TaskRegistry()
registry.register(onboarding)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """The worker lives as long as the service; at its end running steps finish and the rest is handed back."""
    async with zart.PostgresScheduler.connect() as scheduler, asyncio.TaskGroup() as tasks:
        app.state.scheduler = scheduler
        worker = zart.Worker(scheduler, registry)
        tasks.create_task(worker.run())
        await worker.ready()
        yield
        worker.stop()


app = FastAPI(lifespan=lifespan)


def scheduler_of(request: Request) -> zart.PostgresScheduler:
    scheduler: zart.PostgresScheduler = request.app.state.scheduler
    return scheduler


@app.put("/signups/{signup_id}", status_code=202)
async def sign_up(signup_id: str, signup: Signup, request: Request) -> dict[str, bool]:
    """The id is the idempotency key: a client may send it again, it is onboarded once."""
    handle = await scheduler_of(request).start_for(onboarding, signup_id, signup)
    return {"created": handle.created}


@app.get("/signups/{signup_id}")
async def read_signup(signup_id: str, request: Request) -> dict[str, object]:
    try:
        found = await scheduler_of(request).status(signup_id)
    except zart.ExecutionNotFound as error:
        raise HTTPException(404, "there is no such signup") from error
    return {"status": found.status, "account": found.output}
