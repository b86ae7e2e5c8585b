-- status: one execution ( bucket,  execution_id).
-- Locks: none. Index: unique index on execution_id.
select r.id, r.execution_id, r.task_name, r.status, r.held, r.waiting, r.run, r.queue, r.priority,
       r.input::text as input, r.output::text as output, r.error::text as error, r.attempt, r.max_retries, r.crashes,
       r.deadline, r.parent_execution_id, r.created_at, r.started_at, r.finished_at
from :schema.zart_records r
where r.bucket = $1::smallint and r.execution_id = $2::text
