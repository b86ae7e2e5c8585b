-- zart_waited_for_1: those of some executions that have ended.
-- Parameters: p_bucket, p_execution_ids. Locks: none. Index: unique index on execution_id.
create function :schema.zart_waited_for_1(p_bucket smallint, p_execution_ids text[])
returns table(execution_id text, task_name text, status smallint, run int, output text, error text)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
  return query
  select e.execution_id, e.task_name, e.status, e.run, e.output::text, e.error::text
  from :schema.zart_executions e where e.bucket = p_bucket and e.execution_id = any(p_execution_ids) and e.status <> 0;
end $$;
