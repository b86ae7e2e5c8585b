-- zart_cancel_1: ends an execution and all its unfinished children as cancelled, one level at a time; its parent hears
--   of it.
-- Parameters: p_bucket, p_execution_id; p_token of the call, null if it is not sent again. Rows: cancelled (id, worker
--   that held it or null) for each, and for what the same call cancelled when it was sent before; or one row: already,
--   unknown.
-- Locks: queue rows for update, waited for, in order of id; children are read by a statement after it, so a tick that
--   adds some is seen. The parent's row skip locked: if it is, word is left in zart_signals.
-- Index: unique index on execution_id, primary keys, zart_executions_child.
create function :schema.zart_cancel_1(p_bucket smallint, p_execution_id text, p_token bigint default null)
returns table(what text, id bigint, worker bigint) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := now();
  v_level bigint[];
  v_gone bigint[];
  v_root record;
  v_first boolean := true;
begin
  select e.id, e.parent, e.parent_run, e.parent_key, e.step_name, e.attempt, e.cancelled_by into v_root
  from :schema.zart_executions e where e.bucket = p_bucket and e.execution_id = p_execution_id;
  if not found then
    return query select 'unknown', null::bigint, null::bigint;
    return;
  end if;
  if v_root.cancelled_by = p_token then  -- it may have been restarted since
    return query select 'cancelled', v_root.id, null::bigint;
    return;
  end if;
  v_level := array[v_root.id];
  while cardinality(v_level) > 0 loop
    perform 1 from :schema.zart_queue q where q.bucket = p_bucket and q.id = any(v_level) order by q.id for update;
    v_gone := '{}';
    for id, worker in
      with dropped as (
        delete from :schema.zart_queue q where q.bucket = p_bucket and q.id = any(v_level)
        returning q.id, q.worker, q.epoch, q.crashes, q.started_at),
      ended as (
        update :schema.zart_executions e
        set status = 4, epoch = d.epoch, crashes = d.crashes, started_at = d.started_at, finished_at = v_now,
            cancelled_by = p_token
        from dropped d where e.bucket = p_bucket and e.id = d.id and e.status = 0)
      select d.id, d.worker from dropped d
    loop
      what := 'cancelled'; v_gone := v_gone || id; return next;
    end loop;
    if v_first then
      if cardinality(v_gone) = 0 then
        -- Read again: the same call, sent before, may have waited for the row as this one has.
        return query
        select case when e.cancelled_by = p_token then 'cancelled' else 'already' end, e.id, null::bigint
        from :schema.zart_executions e where e.bucket = p_bucket and e.id = v_root.id;
        return;
      end if;
      if v_root.parent is not null then
        with kept as (
          insert into :schema.zart_tasks(bucket, id, run, step_key, epoch, kind, status, attempts, name)
          values (p_bucket, v_root.parent, v_root.parent_run, v_root.parent_key, 0, 3, 4, v_root.attempt + 1,
                  v_root.step_name)
          on conflict do nothing returning 1),
        free as materialized (
          select q.id from kept, lateral (select z.id from :schema.zart_queue z
                                          where z.bucket = p_bucket and z.id = v_root.parent and z.run = v_root.parent_run
                                          for no key update skip locked) q),
        told as (
          update :schema.zart_queue q
          set done = q.done + 1,
              run_at = case when q.worker is null and q.waiting and q.done + 1 >= q.done_at
                            then least(q.run_at, v_now) else q.run_at end
          from free f where q.bucket = p_bucket and q.id = f.id
          returning 1)
        insert into :schema.zart_signals(bucket, id, run, n)
        select p_bucket, v_root.parent, v_root.parent_run, 1 from kept where not exists (select from told);
      end if;
      v_first := false;
    end if;
    select coalesce(array_agg(c.id), '{}') into v_level
    from :schema.zart_executions c where c.bucket = p_bucket and c.parent = any(v_gone) and c.status = 0;
  end loop;
end $$;
