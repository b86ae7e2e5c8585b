-- zart_offer_event_1: keeps an event for an execution. The event is its own checkpoint: the first row under its key
--   wins, a timeout included.
-- Parameters: p_bucket, p_execution_id, p_key of the event's name, p_name, p_payload; p_token of the call, null if it is
--   not sent again: what it stored when it was sent before is accepted.
-- Rows: one: answer = unknown, finished, already_offered or accepted; worker that holds the execution, or null.
-- Locks: the queue row, waited for, before the journal row. Index: unique index on execution_id, primary keys.
create function :schema.zart_offer_event_1(
  p_bucket smallint, p_execution_id text, p_key bigint, p_name text, p_payload json,
  p_token bigint default null
) returns table(answer text, worker bigint) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := now();
  v_id bigint;
  v_run int;
  v_last_run int;
begin
  answer := 'unknown';
  select e.id, e.run into v_id, v_last_run from :schema.zart_executions e where e.bucket = p_bucket and e.execution_id = p_execution_id;
  if found then
    answer := 'finished';
    select q.run, q.worker into v_run, worker from :schema.zart_queue q
    where q.bucket = p_bucket and q.id = v_id for no key update;
    if found then
      answer := 'already_offered';
      insert into :schema.zart_tasks(bucket, id, run, step_key, epoch, kind, status, name, offered_by, result)
      values (p_bucket, v_id, v_run, p_key, 0, 2, 1, p_name, p_token, p_payload) on conflict do nothing;
      if found then
        answer := 'accepted';
        update :schema.zart_queue q
        set wakes = (q.wakes + 1) & 2147483647,
            run_at = case when q.worker is null and q.waiting then least(q.run_at, v_now) else q.run_at end
        where q.bucket = p_bucket and q.id = v_id;
      end if;
    end if;
    if answer <> 'accepted' and p_token is not null then
      perform 1 from :schema.zart_tasks j
      where j.bucket = p_bucket and j.id = v_id and j.run = coalesce(v_run, v_last_run) and j.step_key = p_key
        and j.offered_by = p_token;
      if found then answer := 'accepted'; end if;
    end if;
  end if;
  return next;
end $$;
