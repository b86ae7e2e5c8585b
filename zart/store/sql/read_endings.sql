-- read_endings: how executions stand in their records ($1 bucket, $2 ids); status 0 is unfinished.
-- Locks: none. Index: primary key of zart_executions.
select e.id, e.status, e.epoch, e.run from :schema.zart_executions e
where e.bucket = $1::smallint and e.id = any($2::bigint[])
