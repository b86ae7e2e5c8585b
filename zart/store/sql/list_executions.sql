-- list_executions: executions that are nobody's children, newest first ($1 buckets; $2 stored status, $3 task_name,
--   $4 queue, $5 created_after, $6 created_before, null for any; $7 ids below this one; $8 how many).
-- Locks: none. Index: primary key of zart_executions, backward.
select r.id, r.execution_id, r.task_name, r.status, r.held, r.waiting, r.run, r.queue, r.priority,
       r.input::text as input, r.output::text as output, r.error::text as error, r.attempt, r.max_retries, r.crashes,
       r.deadline, r.parent_execution_id, r.created_at, r.started_at, r.finished_at
from :schema.zart_records r
where r.bucket = any($1::smallint[]) and r.parent is null and ($2::smallint is null or r.status = $2::smallint)
  and ($3::text is null or r.task_name = $3::text) and ($4::text is null or r.queue = $4::text)
  and ($5::timestamptz is null or r.created_at > $5::timestamptz)
  and ($6::timestamptz is null or r.created_at < $6::timestamptz)
  and r.id < $7::bigint
order by r.id desc limit $8::int
