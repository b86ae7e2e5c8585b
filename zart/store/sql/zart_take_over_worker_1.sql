-- zart_take_over_worker_1: frees the claims of a worker that is gone; repeat until 'gone'. The worker row is locked and
--   marked first, the claims are freed by a later statement, so that a last tick of the worker is either seen whole or
--   writes nothing.
-- Parameters: p_bucket, p_worker; p_proof: its process is known to be dead (else its lease must have passed); p_blame:
--   ids that were executing when it died, '{}' none of them, null unknown (then all count, and are set apart from the
--   second time on).
-- Rows: freed (id, crashes), busy (its last tick is still committing), gone.
-- Locks: the worker row and its queue rows for update, skip locked. Index: primary key of zart_workers,
--   zart_queue_held.
create function :schema.zart_take_over_worker_1(p_bucket smallint, p_worker bigint, p_proof boolean, p_blame bigint[])
returns table(what text, id bigint, crashes smallint) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
  perform 1 from :schema.zart_workers w
  where w.bucket = p_bucket and w.id = p_worker and (w.dead or p_proof or w.lease_until < clock_timestamp())
  for update skip locked;
  if not found then
    return query
    select case when exists (select from :schema.zart_workers w where w.bucket = p_bucket and w.id = p_worker)
           then 'busy' else 'gone' end, null::bigint, null::smallint;
    return;
  end if;
  update :schema.zart_workers w set dead = true where w.bucket = p_bucket and w.id = p_worker and not w.dead;
  return query
  update :schema.zart_queue q
  set worker = null, waiting = false, crashes = q.crashes + h.hit,
      lane = case when h.hit = 1 and (p_blame is not null or q.crashes >= 1) then -abs(q.lane) else q.lane end
  from (select z.id, (p_blame is null or z.id = any(p_blame))::int as hit from :schema.zart_queue z
        where z.bucket = p_bucket and z.worker = p_worker for update skip locked) h
  where q.bucket = p_bucket and q.id = h.id
  returning 'freed', q.id, q.crashes;
  delete from :schema.zart_workers w
  where w.bucket = p_bucket and w.id = p_worker
    and not exists (select from :schema.zart_queue z where z.bucket = p_bucket and z.worker = p_worker);
  if found then return query select 'gone', null::bigint, null::smallint; end if;
end $$;
