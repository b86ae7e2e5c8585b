-- zart_start_1: starts executions; ids that exist are left as they are. Ids are taken in one order, so two callers
--   never deadlock; what exists is read by a second statement, which sees what a rival committed meanwhile.
-- Parameters: p_bucket; k_execution_id and k_input (JSON text) by column; p_task_name, p_lane, p_priority, p_delay and
--   p_timeout (seconds, null: none; the timeout counts from the end of the delay), p_max_retries, p_traceparent for all
--   of them; p_token of the call, null if it is not sent again.
-- Rows: each id that existed before, created = false; and, when one id was given, that one if it was created. What the
--   same call made when it was sent before did not exist before.
-- Locks: waits for another open transaction that starts the same id. Index: unique index on execution_id.
create function :schema.zart_start_1(
  p_bucket smallint, k_execution_id text[], k_input text[], p_task_name text, p_lane int, p_priority smallint,
  p_delay float8, p_max_retries int, p_timeout float8, p_traceparent text,
  p_token bigint default null
) returns table(execution_id text, task_name text, created boolean) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := now();
  v_run_at timestamptz := v_now + case when p_delay between 0 and 4e9 then p_delay else 0 end * interval '1 s';
  v_deadline timestamptz := v_run_at + case when p_timeout between 0 and 4e9 then p_timeout end * interval '1 s';
  v_created bigint[];
begin
  with started as (
    insert into :schema.zart_executions(
      bucket, execution_id, task_name, lane, priority, input, max_retries, deadline, created_at, traceparent,
      started_by)
    select p_bucket, k.execution_id, p_task_name, p_lane, p_priority, k.input::json, p_max_retries, v_deadline, v_now,
           p_traceparent, p_token
    from unnest(k_execution_id, k_input) k(execution_id, input) order by k.execution_id collate "C"
    on conflict do nothing
    returning zart_executions.id),
  queued as (
    insert into :schema.zart_queue(bucket, id, lane, priority, run_at)
    select p_bucket, s.id, p_lane, 2 * p_priority + 1, v_run_at from started s returning zart_queue.id)
  select array_agg(q.id) into v_created from queued q;
  if cardinality(k_execution_id) = 1 and v_created is not null then
    return query select k_execution_id[1], p_task_name, true;
  elsif coalesce(cardinality(v_created), 0) < cardinality(k_execution_id) then
    return query
    select e.execution_id, e.task_name, coalesce(e.started_by = p_token, false) from :schema.zart_executions e
    where e.bucket = p_bucket and e.execution_id = any(k_execution_id) and e.id not in (select unnest(v_created))
      and (cardinality(k_execution_id) = 1 or (e.started_by = p_token) is not true);
  end if;
end $$;
