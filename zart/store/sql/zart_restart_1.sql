-- zart_restart_1: begins a finished execution again as its next run. The epoch goes on, so (id, worker, epoch) never
--   repeats.
-- Parameters: p_bucket, p_execution_id; p_token of the call, null if it is not sent again. Returns its id, also when the
--   same call restarted it when it was sent before; null: no such execution, or it is not finished.
-- Locks: its record, waited for. Index: unique index on execution_id.
create function :schema.zart_restart_1(p_bucket smallint, p_execution_id text, p_token bigint default null)
returns bigint language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
declare
  v_now timestamptz := now();
  v_deadline timestamptz;
  v_id bigint;
begin
  select v_now + (e.deadline - e.created_at) into v_deadline
  from :schema.zart_executions e where e.bucket = p_bucket and e.execution_id = p_execution_id;
  with again as (
    update :schema.zart_executions e
    set run = e.run + 1, status = 0, attempt = 0, crashes = 0, output = null, error = null, deadline = v_deadline,
        started_at = null, finished_at = null, started_by = p_token
    where e.bucket = p_bucket and e.execution_id = p_execution_id and e.status <> 0
      and (e.started_by = p_token) is not true
    returning e.id, e.run, e.epoch, e.lane, e.priority)
  insert into :schema.zart_queue(bucket, id, lane, priority, run_at, run, epoch)
  select p_bucket, a.id, a.lane, 2 * a.priority + 1, v_now, a.run, a.epoch from again a
  returning zart_queue.id into v_id;
  delete from :schema.zart_quarantined k where k.bucket = p_bucket and k.id = v_id;
  if v_id is null then
    select e.id into v_id from :schema.zart_executions e
    where e.bucket = p_bucket and e.execution_id = p_execution_id and e.started_by = p_token;
  end if;
  return v_id;
end $$;
