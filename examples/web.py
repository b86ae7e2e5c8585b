"""A web service: a request stores a row and starts a durable execution in one transaction, and waits for the result.

    pip install fastapi uvicorn
    DATABASE_URL=postgresql://... uvicorn examples.web:app

    curl -X PUT localhost:8000/signups/ada -H 'content-type: application/json' \\
        -d '{"email": "ada@example.com", "card": "4242", "regions": ["eu"]}'

`zart migrate` first: without zart's tables the service does not start. It runs the executions too, in the same event
loop, and more processes of it share the work; so do `zart-runner` processes on the same database. To leave all work to
those, leave the worker out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, HTTPException, Query, Request, Response

import zart
from examples.onboarding import Account, Signup, onboarding

registry = zart.TaskRegistry()
registry.register(onboarding)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """The worker lives as long as the service; at its end running steps finish and the rest is handed back."""
    async with (
        zart.PostgresScheduler.connect() as scheduler,
        asyncpg.create_pool(scheduler.dsn, min_size=0) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        worker = zart.Worker(scheduler, registry)
        tasks.create_task(worker.run())
        await worker.ready()
        await pool.execute("create table if not exists signups (id text primary key, email text not null)")
        app.state.scheduler, app.state.pool = scheduler, pool
        yield
        worker.stop()


app = FastAPI(lifespan=lifespan)


def scheduler_of(request: Request) -> zart.PostgresScheduler:
    scheduler: zart.PostgresScheduler = request.app.state.scheduler
    return scheduler


@app.put("/signups/{signup_id}", response_model=None)
async def sign_up(
    signup_id: str,
    signup: Signup,
    request: Request,
    response: Response,
    wait: Annotated[float, Query(ge=0, le=30)] = 2.0,
) -> Account | dict[str, str]:
    """The account, or 202 and where to ask for it when `wait` seconds were not enough.

    The id is the idempotency key: a client may send the request again, and is onboarded once.
    """
    scheduler, pool = scheduler_of(request), request.app.state.pool
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("insert into signups values ($1, $2) on conflict do nothing", signup_id, signup.email)
        handle = await scheduler.start_for(onboarding, signup_id, signup, conn=conn)
    try:
        return await handle.result(timeout=wait)
    except zart.WaitTimedOut as late:
        response.status_code = 202
        response.headers["Location"] = str(request.url_for("read_signup", signup_id=signup_id))
        return {"status": late.status}
    except zart.ExecutionFailed as failed:
        raise HTTPException(500, "the signup failed; somebody will look at it") from failed


@app.get("/signups/{signup_id}")
async def read_signup(signup_id: str, request: Request) -> dict[str, Any]:
    try:
        found = await scheduler_of(request).status(signup_id)
    except zart.ExecutionNotFound as error:
        raise HTTPException(404, "there is no such signup") from error
    return {"status": found.status, "account": found.output}
