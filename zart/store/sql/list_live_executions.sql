-- list_live_executions: as list_executions, for an unfinished status ($2 'pending', 'running' or 'waiting').
-- Locks: none. Index: primary key of zart_queue, backward; finished executions cost nothing.
select r.id, r.execution_id, r.task_name, r.status, r.held, r.waiting, r.run, r.queue, r.priority,
       r.input::text as input, r.output::text as output, r.error::text as error, r.attempt, r.max_retries, r.crashes,
       r.deadline, r.parent_execution_id, r.created_at, r.started_at, r.finished_at
from :schema.zart_queue z join :schema.zart_records r on r.bucket = z.bucket and r.id = z.id
where z.bucket = any($1::smallint[]) and r.parent is null
  and $2::text = case when z.worker is not null then 'running'
                      when z.waiting and z.run_at > now() then 'waiting' else 'pending' end
  and ($3::text is null or r.task_name = $3::text) and ($4::text is null or r.queue = $4::text)
  and ($5::timestamptz is null or r.created_at > $5::timestamptz)
  and ($6::timestamptz is null or r.created_at < $6::timestamptz)
  and z.id < $7::bigint
order by z.id desc limit $8::int
