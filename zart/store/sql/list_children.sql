-- list_children: children of one execution, newest first, of all its runs ($1 buckets; $2 status by name, $3 task_name,
--   $4 queue, $5 created_after, $6 created_before, null for any; $7 ids below this one; $8 how many; $9 the parent's
--   execution_id).
-- Locks: none. Index: zart_executions_child.
select r.id, r.execution_id, r.task_name, r.status, r.held, r.waiting, r.run, r.queue, r.priority,
       r.input::text as input, r.output::text as output, r.error::text as error, r.attempt, r.max_retries, r.crashes,
       r.deadline, r.parent_execution_id, r.created_at, r.started_at, r.finished_at
from :schema.zart_records r
where r.bucket = any($1::smallint[])
  and r.parent = (select p.id from :schema.zart_executions p
                  where p.bucket = any($1::smallint[]) and p.execution_id = $9::text)
  and ($2::text is null or $2::text = case r.status
         when 0 then case when r.held then 'running' when r.waiting then 'waiting' else 'pending' end
         when 1 then 'completed' when 2 then 'failed' when 4 then 'cancelled' when 5 then 'quarantined' end)
  and ($3::text is null or r.task_name = $3::text) and ($4::text is null or r.queue = $4::text)
  and ($5::timestamptz is null or r.created_at > $5::timestamptz)
  and ($6::timestamptz is null or r.created_at < $6::timestamptz)
  and r.id < $7::bigint
order by r.id desc limit $8::int
