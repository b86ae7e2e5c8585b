-- existing: those of some ids that executions have ($1 bucket, $2 execution_ids). Locks: none. Index: unique index on
--   execution_id.
select e.execution_id from :schema.zart_executions e where e.bucket = $1::smallint and e.execution_id = any($2::text[])
