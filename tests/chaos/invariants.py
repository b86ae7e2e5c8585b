"""What must hold after any run of faults, each as a question to the database.

`watch` puts triggers on zart's tables that keep what would otherwise be gone by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from tests.chaos import app, effects
from zart.model import StoredStatus

_WATCH = """
create table endings(id bigint, run int, status smallint);
create table changes(what text);
create table handovers(id bigint, epoch int, claimed boolean, at timestamptz default clock_timestamp());

create function note_ending() returns trigger language plpgsql as $$
begin
  if old.status = 0 and new.status <> 0 then insert into public.endings values (new.id, new.run, new.status); end if;
  if old.status <> 0 and old::text is distinct from new::text then
    insert into public.changes values (format('execution %s: %s became %s', old.execution_id, old, new));
  end if;
  return null;
end $$;
create trigger note_ending after update on zart.zart_executions for each row execute function note_ending();

create function note_change() returns trigger language plpgsql as $$
begin
  insert into public.changes values (format('%s of %s: %s became %s', tg_op, tg_table_name, old, new));
  return null;
end $$;
create trigger note_loss after delete on zart.zart_executions for each row execute function note_change();
create trigger note_change after update on zart.zart_tasks for each row execute function note_change();
create trigger note_loss after delete on zart.zart_tasks for each row when (old.status = 1)
  execute function note_change();

create function note_handover() returns trigger language plpgsql as $$
begin
  insert into public.handovers values (new.id, new.epoch, new.worker is not null);
  return null;
end $$;
create trigger note_handover after update on zart.zart_queue for each row
  when ((old.worker is null) <> (new.worker is null) and (new.worker is not null or new.run_at <= now()))
  execute function note_handover();
"""

_NONE_MAY_BE: Mapping[str, str] = {
    "an execution ends exactly once": "select e.execution_id, count(n.id) as endings from zart.zart_executions e"
    " left join endings n on n.id = e.id and n.run = e.run group by e.id having count(n.id) <> 1",
    "terminal rows never change": "select what from changes",
    "no committed step starts again": "select f.execution_id, f.step, f.attempt, f.pid, f.began, t.created_at"
    " from effects f join zart.zart_executions e using (execution_id)"
    " join zart.zart_tasks t on t.id = e.id and t.run = e.run and t.name = f.step where f.began > t.created_at",
    "a transaction's writes are there once": "select e.execution_id, e.status, count(l.amount) as writes"
    " from zart.zart_executions e left join ledger l using (execution_id) where e.task_name = 'banker'"
    " group by e.id having count(l.amount) <> 1",
    "nothing is left in the queue": "select q.*, e.execution_id, e.status from zart.zart_queue q"
    " left join zart.zart_executions e using (id)",
    "no signals are left": "select * from zart.zart_signals",
    "no child lives on without its parent": "select c.execution_id from zart.zart_executions c"
    " join zart.zart_executions p on p.id = c.parent where c.status = 0 and p.status <> 0",
    "a parent knows how its children ended": "select c.execution_id, c.status from zart.zart_executions c"
    " join zart.zart_executions p on p.id = c.parent and p.run = c.parent_run and p.status = 1 where not exists"
    " (select from zart.zart_tasks t where t.id = p.id and t.run = p.run and t.step_key = c.parent_key)",
}

_OFTEN = (
    "select f.execution_id, f.step, count(*) as began, max(f.tries) as tries, extract(epoch from min(f.began))::float8"
    " as first, extract(epoch from max(f.began))::float8 as last from effects f group by 1, 2"
    " having count(*) > max(f.tries)"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the fleet or its database.

    Attributes:
        kind: what it was.
        whom: process id, or what else it was done to.
        began, healed: seconds since 1970.
    """

    kind: str
    whom: str
    began: float
    healed: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """An execution whose start was answered."""

    execution_id: str
    task_name: str
    number: int


async def watch(connection: asyncpg.Connection) -> None:
    """Make the tables and triggers of the suite, in a migrated schema of zart."""
    await connection.execute(effects.TABLE)
    await connection.execute(app.LEDGER)
    await connection.execute(_WATCH)


async def violations(
    connection: asyncpg.Connection, accepted: Iterable[Accepted], faults: Sequence[Fault], aftermath: float
) -> list[str]:
    """Each a line that begins with what should have held.

    Args:
        accepted: executions that must have ended as their workflow says.
        faults: what was done meanwhile.
        aftermath: seconds after a fault is healed within which its work is done again.
    """
    found: list[str] = []
    for what, query in _NONE_MAY_BE.items():
        found += _told(what, [dict(row) for row in await connection.fetch(query)])
    found += await _wrong_endings(connection, accepted)
    for row in await connection.fetch(_OFTEN):
        around = sum(fault.began <= row["last"] and row["first"] <= fault.healed + aftermath for fault in faults)
        if row["began"] > row["tries"] + around:
            found += _told("effects <= 1 + allowed tries + crashes", [{**row, "crashes": around}])
    return found


async def _wrong_endings(connection: asyncpg.Connection, accepted: Iterable[Accepted]) -> list[str]:
    rows = await connection.fetch("select execution_id, status, output::text, error::text from zart.zart_executions")
    stored = {row["execution_id"]: row for row in rows}
    wrong: list[dict[str, object]] = []
    for one in accepted:
        status, output = app.ENDINGS[one.task_name](one.number)
        row = stored.get(one.execution_id)
        right = row is not None and row["status"] == status
        if right and row is not None and status == StoredStatus.COMPLETED:
            right = json.loads(row["output"]) == output
        if not right:
            wrong.append({"accepted": one, "stored": row and dict(row), "wanted": (status, output)})
    return _told("an accepted execution ends as its workflow says", wrong)


def _told(what: str, rows: Sequence[Mapping[str, object]], most: int = 5) -> list[str]:
    told = [f"{what}: {dict(row)}" for row in rows[:most]]
    return [*told, f"{what}: and {len(rows) - most} more"] if len(rows) > most else told


RESUMED = """
select extract(epoch from min(c.at) - h.at)::float8 as seconds from handovers h
join handovers c on c.id = h.id and c.claimed and c.epoch > h.epoch
where not h.claimed and h.at between to_timestamp($1) and to_timestamp($2) group by h.id, h.epoch, h.at order by 1
"""
"""How long each execution that was handed back or taken over while it could run waited for its next claim, sorted."""


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 when there are none."""
    return values[int(len(values) * share)] if values else 0.0
