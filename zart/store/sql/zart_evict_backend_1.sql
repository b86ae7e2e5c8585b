-- zart_evict_backend_1: ends the database session of a worker, whose last tick it holds open. Null: there is
--   none that is the worker's own.
-- Parameters: p_bucket, p_worker. Locks: none. Index: primary key of zart_workers.
create function :schema.zart_evict_backend_1(p_bucket smallint, p_worker bigint) returns boolean language sql
as $$
  select pg_terminate_backend(a.pid)
  from :schema.zart_workers w join pg_stat_activity a on a.pid = w.backend and a.backend_start = w.backend_start
  where w.bucket = p_bucket and w.id = p_worker
$$;
