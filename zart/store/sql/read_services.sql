-- read_services: what workers serve ($1 bucket, $2 ids). Locks: none. Index: primary key of zart_workers.
select w.id, w.task_names, w.queues from :schema.zart_workers w
where w.bucket = $1::smallint and w.id = any($2::bigint[])
