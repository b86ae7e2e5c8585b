-- history: the journal of an execution's present run, failed tries included ($1 bucket, $2 execution_id).
-- Rows: kind null is a failed try, attempts its number; ahead: its due time is to come. No row at all: no such
--   execution; step_key null: an empty journal.
-- Locks: none. Index: unique index on execution_id, primary keys.
select j.step_key, j.kind, j.status, j.attempts, j.name, j.result, j.error, j.due, j.began_at,
       j.created_at, coalesce(j.due > clock_timestamp(), false) as ahead
from :schema.zart_executions e
left join lateral (
  select t.step_key, t.kind, t.status, t.attempts, t.name, t.result::text as result, t.error::text as error, t.due,
         t.created_at - t.seconds * interval '1 s' as began_at, t.created_at
  from :schema.zart_tasks t where t.bucket = e.bucket and t.id = e.id and t.run = e.run
  union all
  select a.step_key, null, null, a.attempt, a.name, null, a.error::text, a.due,
         a.created_at - a.seconds * interval '1 s', a.created_at
  from :schema.zart_attempts a where a.bucket = e.bucket and a.id = e.id and a.run = e.run
) j on true
where e.bucket = $1::smallint and e.execution_id = $2::text
order by j.created_at, j.began_at, j.name, j.attempts
