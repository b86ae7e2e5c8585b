-- zart_reregister_1: registers a worker, and after a lost connection makes it the heir of its former self. May be sent
--   again with the same ids until it is answered: the rows are every claim that p_new holds, so what a worker knows
--   beyond them is lost.
-- Parameters: p_bucket, p_old (0: none), p_new, p_lease in seconds, p_host, p_pid, p_task_names, p_queues (null: all)
--   it serves; p_session: the process id that the client was given when it connected. Behind a pooler that is not this
--   session's, which serves others next: none is kept, so that nobody ends it for this worker's sake.
-- Locks: the old worker row for update, waits 2 s for its last tick (55P03 then: evict_backend and call again); queue
--   rows skip locked.
-- Index: primary keys, zart_queue_held.
create function :schema.zart_reregister_1(
  p_bucket smallint, p_old bigint, p_new bigint, p_lease float8, p_host text, p_pid int, p_task_names text[],
  p_queues text[], p_session int
) returns table(id bigint, run int, epoch int, wakes int, done int, lane int) language plpgsql
set lock_timeout = '2s' set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_until timestamptz := clock_timestamp() + p_lease * interval '1 s';
  v_backend int;
  v_backend_start timestamptz;
begin
  select a.pid, a.backend_start into v_backend, v_backend_start
  from pg_stat_activity a where a.pid = pg_backend_pid() and a.pid = p_session;
  insert into :schema.zart_workers(bucket, id, lease_until, backend, backend_start, host, pid, task_names, queues)
  values (p_bucket, p_new, v_until, v_backend, v_backend_start, p_host, p_pid, p_task_names, p_queues)
  on conflict do nothing;
  if not found then
    update :schema.zart_workers w set backend = v_backend, backend_start = v_backend_start
    where w.bucket = p_bucket and w.id = p_new and w.backend_start < v_backend_start;
  end if;
  perform 1 from :schema.zart_workers w where w.bucket = p_bucket and w.id = p_old and not w.dead for update;
  if found then
    update :schema.zart_workers w set dead = true where w.bucket = p_bucket and w.id = p_old;
    update :schema.zart_queue q set worker = p_new
    where q.bucket = p_bucket and q.id = any(array(
      select z.id from :schema.zart_queue z where z.bucket = p_bucket and z.worker = p_old for update skip locked));
    delete from :schema.zart_workers w
    where w.bucket = p_bucket and w.id = p_old
      and not exists (select from :schema.zart_queue z where z.bucket = p_bucket and z.worker = p_old);
  end if;
  return query
  select q.id, q.run, q.epoch, q.wakes, q.done, q.lane
  from :schema.zart_queue q where q.bucket = p_bucket and q.worker = p_new;
end $$;
