-- audit_executions: what a check of every execution of a task reads: how it ended, and its last run's checkpoints.
-- again_at: the first thing that a later claim than the first one wrote; null if it wrote nothing.
-- Parameters: $1 bucket, $2 task name. Locks: none. Index: zart_tasks' key; zart_executions is read whole.
select e.execution_id, e.status, e.epoch, e.output, e.started_at, e.finished_at,
  array_agg(t.name order by t.name) filter (where t.id is not null) as names,
  array_agg(t.result order by t.name) filter (where t.id is not null) as results,
  coalesce(min(t.created_at) filter (where t.epoch > 1), case when e.epoch > 1 then e.finished_at end) as again_at
from :schema.zart_executions e
left join :schema.zart_tasks t on t.bucket = e.bucket and t.id = e.id and t.run = e.run
where e.bucket = $1 and e.task_name = $2
group by e.id
