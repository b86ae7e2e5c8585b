"""What the database itself saw of a run: endings, and steps that began after they were committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg

from tests.support.workflows import make_effects

# Everything that zart keeps of executions; workers come and go, and are no part of it.
_STATE = """
    select 'execution', e.id, e.run, e.epoch, e.status::text, e.output::text, e.finished_at from zart.zart_executions e
    union all select 'task', t.id, t.run, t.epoch, t.name, t.result::text, t.created_at from zart.zart_tasks t
    union all select 'attempt', a.id, a.run, a.epoch, a.name, a.error::text, a.created_at from zart.zart_attempts a
    union all select 'queue', q.id, q.run, q.epoch, q.worker::text, null, q.run_at from zart.zart_queue q
    order by 1, 2, 3, 4, 5
"""


async def state_of(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """All that is kept of executions, to be compared."""
    return [dict(row) for row in await connection.fetch(_STATE)]


async def make_witness(connection: asyncpg.Connection) -> None:
    """Make the table of effects, and have every ending noted in the table `endings`."""
    await make_effects(connection)
    await connection.execute(
        """
        create table endings(id bigint, status int2);
        create function note_ending() returns trigger language plpgsql as $$
        begin insert into public.endings values (new.id, new.status); return null; end $$;
        create trigger note_ending after update of status on zart.zart_executions
            for each row when (new.status <> 0) execute function note_ending();
        """
    )


async def assert_each_completed_once(connection: asyncpg.Connection, outputs: Mapping[str, float]) -> None:
    """Every execution ended once, completed, with the output given here by its id."""
    rows = await connection.fetch("select execution_id, status, output::text from zart.zart_executions")
    wrong = {
        row["execution_id"]: (row["status"], row["output"])
        for row in rows
        if (row["status"], row["output"]) != (1, str(outputs[row["execution_id"]]))
    }
    assert not wrong
    assert len(rows) == len(outputs)
    assert await connection.fetch("select id from endings group by id having count(*) <> 1") == []


async def assert_no_committed_step_began_again(connection: asyncpg.Connection) -> None:
    """No try of a step began after a checkpoint of that step had been written."""
    again = await connection.fetch(
        "select f.execution_id, f.step, f.began - t.created_at as late from effects f"
        " join zart.zart_executions e using (execution_id)"
        " join zart.zart_tasks t on t.id = e.id and t.run = e.run and t.name = f.step"
        " where f.began > t.created_at"
    )
    assert again == []
