-- zart_load_journal_1: journals, failed tries and counters of runs, all of one snapshot: a counter is never newer than
--   its rows.
-- Parameters: p_bucket, p_ids and p_runs (pairs), p_worker who holds them.
-- Rows: what = counters (epoch, wakes, done, traceparent of the turn before; none if the claim is gone), checkpoint,
--   attempt (attempts = its number), child (step_key of one that has not ended).
--   due_in in seconds from now; began_ago: seconds since the run's first claim (counters) or since a failed try began.
-- Locks: none. Index: primary keys, zart_executions_child.
create function :schema.zart_load_journal_1(p_bucket smallint, p_ids bigint[], p_runs int[], p_worker bigint)
returns table(
  id bigint, what text, step_key bigint, kind smallint, status smallint, attempts smallint, name text, result text,
  error text, due_in float8, epoch int, seconds real, began_ago float8, wakes int, done int,
  traceparent text
) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
  return query
  select q.id, 'counters', null::bigint, null::smallint, null::smallint, null::smallint, null, null, null,
         null::float8, q.epoch, null::real, extract(epoch from now() - q.started_at)::float8, q.wakes, q.done,
         q.traceparent
  from unnest(p_ids, p_runs) u(id, run), :schema.zart_queue q
  where q.bucket = p_bucket and q.id = u.id and q.run = u.run and q.worker = p_worker
  union all
  select j.id, 'checkpoint', j.step_key, j.kind, j.status, j.attempts, j.name, j.result::text, j.error::text,
         extract(epoch from j.due - now())::float8, j.epoch, j.seconds, null, null, null, null
  from unnest(p_ids, p_runs) u(id, run), :schema.zart_tasks j
  where j.bucket = p_bucket and j.id = u.id and j.run = u.run
  union all
  select a.id, 'attempt', a.step_key, null, null, a.attempt, a.name, null, a.error::text,
         extract(epoch from a.due - now())::float8, a.epoch, a.seconds,
         extract(epoch from now() - a.created_at)::float8 + coalesce(a.seconds, 0), null, null, null
  from unnest(p_ids, p_runs) u(id, run), :schema.zart_attempts a
  where a.bucket = p_bucket and a.id = u.id and a.run = u.run
  union all
  select e.parent, 'child', e.parent_key, null, null, null, null, null, null, null, null, null, null, null, null,
         null
  from unnest(p_ids, p_runs) u(id, run), :schema.zart_executions e
  where e.bucket = p_bucket and e.parent = u.id and e.parent_run = u.run and e.status = 0;
end $$;
