-- zart_release_1: takes an execution out of quarantine: the same run goes on with its journal, in its normal lane. The
--   epoch goes on, so (id, worker, epoch) never repeats. The time in quarantine counts neither for its deadline nor for
--   its timeout.
-- Parameters: p_bucket, p_execution_id; p_token of the call, null if it is not sent again. Rows: one: what = released,
--   also when the same call released it when it was sent before; refused (it is not quarantined); told (its parent has
--   its end already, or has ended; execution_id: the root of the tree); unknown.
-- Locks, all waited for: its record; its parent's queue row for key share; its children's queue rows, in order of id, so that each child ends either before,
--   and is counted here, or finds its parent's queue row; the signals left for it, which have lost their meaning.
-- Index: unique index on execution_id, primary keys, zart_executions_child; zart_signals is small.
create function :schema.zart_release_1(p_bucket smallint, p_execution_id text, p_token bigint default null)
returns table(what text, execution_id text) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := now();
  v_quarantined interval;
  v_deadline timestamptz;
  v_started_at timestamptz;
  v_parent bigint;
  v_done int;
  v_lives boolean := true;
  v_it record;
begin
  execution_id := p_execution_id;
  select e.id, e.run, e.epoch, e.lane, e.priority, e.status, e.deadline, e.started_at, e.finished_at, e.parent,
         e.parent_run, e.parent_key, e.started_by
    into v_it from :schema.zart_executions e
  where e.bucket = p_bucket and e.execution_id = p_execution_id for update;
  if not found then what := 'unknown'; return next; return; end if;
  if v_it.started_by = p_token then what := 'released'; return next; return; end if;
  if v_it.status <> 5 then what := 'refused'; return next; return; end if;
  if v_it.parent is not null then
    perform 1 from :schema.zart_queue q
    where q.bucket = p_bucket and q.id = v_it.parent and q.run = v_it.parent_run for key share;
    v_lives := found;
  end if;
  if not v_lives or exists (select from :schema.zart_tasks t
                            where t.bucket = p_bucket and t.id = v_it.parent and t.run = v_it.parent_run
                              and t.step_key = v_it.parent_key)
  then
    what := 'told';
    v_parent := v_it.parent;
    while v_parent is not null loop
      select e.execution_id, e.parent into execution_id, v_parent
      from :schema.zart_executions e where e.bucket = p_bucket and e.id = v_parent;
    end loop;
    return next;
    return;
  end if;
  perform 1 from :schema.zart_queue q
  where q.bucket = p_bucket and q.id = any(array(
    select c.id from :schema.zart_executions c
    where c.bucket = p_bucket and c.parent = v_it.id and c.parent_run = v_it.run and c.status = 0))
  order by q.id for update;
  delete from :schema.zart_signals s where s.bucket = p_bucket and s.id = v_it.id and s.run = v_it.run;
  select count(*) into v_done from :schema.zart_tasks t
  where t.bucket = p_bucket and t.id = v_it.id and t.run = v_it.run and t.kind = 3 and t.epoch = 0;
  v_quarantined := v_now - v_it.finished_at;
  v_deadline := v_it.deadline + v_quarantined;
  v_started_at := v_it.started_at + v_quarantined;
  update :schema.zart_executions e
  set status = 0, crashes = 0, error = null, deadline = v_deadline, started_at = null, finished_at = null,
      started_by = p_token
  where e.bucket = p_bucket and e.id = v_it.id;
  delete from :schema.zart_quarantined k where k.bucket = p_bucket and k.id = v_it.id;
  insert into :schema.zart_queue(bucket, id, lane, priority, run_at, started_at, run, epoch, done)
  values (p_bucket, v_it.id, v_it.lane, 2 * v_it.priority, v_now, v_started_at, v_it.run, v_it.epoch, v_done);
  what := 'released';
  return next;
end $$;
