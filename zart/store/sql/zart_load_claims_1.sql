-- zart_load_claims_1: the records of claimed executions, read after the tick so that a slow reader never holds a tick
--   open.
-- Parameters: p_bucket, p_ids. Rows: deadline_in in seconds from now, age in seconds since the start.
-- Locks: none. Index: primary key of zart_executions.
create function :schema.zart_load_claims_1(p_bucket smallint, p_ids bigint[]) returns table(
  id bigint, execution_id text, task_name text, input text, attempt int, max_retries int, priority smallint,
  deadline_in float8, step_name text, parent bigint, lane int, age float8
) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
  return query
  select e.id, e.execution_id, e.task_name, e.input::text, e.attempt, e.max_retries, e.priority,
         extract(epoch from e.deadline - now())::float8, e.step_name, e.parent, e.lane,
         extract(epoch from now() - e.created_at)::float8
  from :schema.zart_executions e where e.bucket = p_bucket and e.id = any(p_ids);
end $$;
