-- hint: tells idle workers that work may be ready ($1 bucket, $2 channel, $3 queue, $4 task_name, null: unknown), if
--   there is one that serves it. Run it after the commit of what made the work. Rows: one if a hint was sent.
-- Locks: none. Index: none, the table is small.
select pg_notify($2::text, '') where exists (
  select from :schema.zart_workers w
  where w.bucket = $1::smallint and w.idle and not w.dead and w.lease_until > clock_timestamp()
    and ($4::text is null or $4::text = any(w.task_names))
    and ($3::text is null or w.queues is null or $3::text = any(w.queues)))
