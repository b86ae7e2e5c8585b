-- zart_take_over_worker_1: frees the claims of a worker that is gone; repeat until 'gone'. The worker row is locked and
--   marked first, the claims are freed by a later statement, so that a last tick of the worker is either seen whole or
--   writes nothing.
-- Parameters: p_bucket, p_worker; p_proof: its process is known to be dead (else its lease must have passed); p_blame:
--   ids that were executing when it died, '{}' none of them, null unknown (then all count, and are set apart from the
--   second time on); p_death: how it died, the error of what is set apart (null: left as it is).
--   crashes: 1 from when it counts, and one more for each death apart; a completed turn sets it back to 0.
-- Rows: freed (id, crashes), apart (id, execution_id) for those set apart, busy (its last tick is still committing),
--   gone.
-- Locks: the worker row and its queue rows for update, skip locked; then records of executions whose queue rows it has.
-- Index: primary keys of zart_workers and zart_executions, zart_queue_held.
create function :schema.zart_take_over_worker_1(
  p_bucket smallint, p_worker bigint, p_proof boolean, p_blame bigint[], p_death json
) returns table(what text, id bigint, crashes smallint, execution_id text) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_freed bigint[]; v_crashes smallint[]; v_apart bigint[];
begin
  perform 1 from :schema.zart_workers w
  where w.bucket = p_bucket and w.id = p_worker and (w.dead or p_proof or w.lease_until < clock_timestamp())
  for update skip locked;
  if not found then
    return query
    select case when exists (select from :schema.zart_workers w where w.bucket = p_bucket and w.id = p_worker)
           then 'busy' else 'gone' end, null::bigint, null::smallint, null;
    return;
  end if;
  update :schema.zart_workers w set dead = true where w.bucket = p_bucket and w.id = p_worker and not w.dead;
  with freed as (
    update :schema.zart_queue q
    set worker = null, waiting = false,
        crashes = case when not h.hit then q.crashes when q.lane < 0 then q.crashes + 1 else 1 end,
        lane = case when h.hit and (p_blame is not null or q.crashes > 0) then -abs(q.lane) else q.lane end
    from (select z.id, (p_blame is null or z.id = any(p_blame)) as hit from :schema.zart_queue z
          where z.bucket = p_bucket and z.worker = p_worker for update skip locked) h
    where q.bucket = p_bucket and q.id = h.id
    returning q.id, q.crashes, h.hit and q.lane < 0 as apart)
  select array_agg(f.id), array_agg(f.crashes), array_agg(f.id) filter (where f.apart)
    into v_freed, v_crashes, v_apart from freed f;
  return query select 'freed', u.id, u.crashes, null from unnest(v_freed, v_crashes) u(id, crashes);
  if v_apart is not null then
    return query
    update :schema.zart_executions e set error = coalesce(p_death, e.error)
    where e.bucket = p_bucket and e.id = any(v_apart)
    returning 'apart', e.id, null::smallint, e.execution_id;
  end if;
  delete from :schema.zart_workers w
  where w.bucket = p_bucket and w.id = p_worker
    and not exists (select from :schema.zart_queue z where z.bucket = p_bucket and z.worker = p_worker);
  if found then return query select 'gone', null::bigint, null::smallint, null; end if;
end $$;
