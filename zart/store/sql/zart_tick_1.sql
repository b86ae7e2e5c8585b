-- zart_tick_1: the group commit of one worker: fence, checkpoints, children, endings and parkings, claims, in this
--   order.
-- Parameters: p_bucket, p_worker; columns of checkpoints c_*, of verbs t_*, of children k_*; p_lanes to claim from,
--   rotated by the caller, p_limit claims at most. k_traceparent: null is the parent's. Dues and deadlines are seconds from now. t_verb: 0 hold, 1 finish, 2
--   park, 3 put off, 4 retry, 5 handle (it has failed: keep that, and free it for its failure handler). t_seen of a
--   finish: how many children of earlier passes nobody wants any more; they end with it.
-- Rows: fence (extra: milliseconds left of the lease; no such row: taken over, nothing was written), checkpointed, applied, later (signals left), risen (parked
--   parents and failed executions that may go on), wake (parents held by this worker of which a child has ended),
--   claim (extra: its lane).
-- Locks: own worker row for key share; queue rows `skip locked`, never waited for. Each inner statement sees the one
--   before it.
-- Index: primary keys; zart_queue_due for claims.
create function :schema.zart_tick_1(
  p_bucket smallint, p_worker bigint,
  c_id bigint[], c_epoch int[], c_key bigint[], c_kind smallint[], c_status smallint[], c_attempts smallint[],
  c_due float8[], c_seconds real[], c_name text[], c_result bytea[], c_error bytea[],
  t_id bigint[], t_epoch int[], t_verb smallint[], t_seen int[], t_done_at int[], t_due float8[], t_status smallint[],
  t_output bytea[], t_error bytea[],
  k_id bigint[], k_run int[], k_key bigint[], k_name text[], k_task text[], k_lane int[], k_priority smallint[],
  k_input bytea[], k_max_retries int[], k_deadline float8[], k_traceparent text[],
  p_lanes int[], p_limit int
) returns table(
  what text, id bigint, run int, epoch int, wakes int, done int, crashes smallint, waited real, extra int, ids bigint[]
) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := now();
  v_live boolean;
  v_left int;
  v_count int;
  v_more int;
  m_id bigint[]; m_epoch int[]; m_run int[]; m_verb smallint[]; m_seen int[]; m_done_at int[]; m_due float8[];
  m_status smallint[]; m_output bytea[]; m_error bytea[]; m_crashes smallint[]; m_started_at timestamptz[];
  m_json json[]; m_error_json json[]; m_at timestamptz[];
  p_id bigint[]; p_run int[]; p_n int[];
  v_told bigint[]; v_ours bigint[];
begin
  select greatest(0, extract(epoch from w.lease_until - clock_timestamp()) * 1000)::int into v_left
  from :schema.zart_workers w where w.bucket = p_bucket and w.id = p_worker and not w.dead for key share;
  if not found then return; end if;
  v_live := v_left > 0;
  what := 'fence'; extra := v_left; return next;

  if cardinality(c_id) > 0 then
    -- Conflicts are rare (a tick sent twice): the plain insert costs the server a quarter less than `on conflict`.
    begin
      insert into :schema.zart_tasks(
        bucket, id, run, step_key, epoch, kind, status, attempts, due, seconds, name, result, error)
      select p_bucket, q.id, q.run, c.key, q.epoch, c.kind, c.status, c.attempts,
             v_now + case when c.due between 0 and 4e9 then c.due when c.due < 0 then 0 end * interval '1 s',
             c.seconds, c.name, convert_from(c.result, 'UTF8')::json, convert_from(c.error, 'UTF8')::json
      from unnest(c_id, c_epoch, c_key, c_kind, c_status, c_attempts, c_due, c_seconds, c_name, c_result, c_error)
             c(id, epoch, key, kind, status, attempts, due, seconds, name, result, error),
           lateral (select z.id, z.run, z.epoch from :schema.zart_queue z
                    where z.bucket = p_bucket and z.id = c.id and z.worker = p_worker and z.epoch = c.epoch offset 0) q
      where c.kind <> 2 and c.kind <> 9;
      get diagnostics v_count = row_count;
    exception when unique_violation then
      insert into :schema.zart_tasks(
        bucket, id, run, step_key, epoch, kind, status, attempts, due, seconds, name, result, error)
      select p_bucket, q.id, q.run, c.key, q.epoch, c.kind, c.status, c.attempts,
             v_now + case when c.due between 0 and 4e9 then c.due when c.due < 0 then 0 end * interval '1 s',
             c.seconds, c.name, convert_from(c.result, 'UTF8')::json, convert_from(c.error, 'UTF8')::json
      from unnest(c_id, c_epoch, c_key, c_kind, c_status, c_attempts, c_due, c_seconds, c_name, c_result, c_error)
             c(id, epoch, key, kind, status, attempts, due, seconds, name, result, error),
           lateral (select z.id, z.run, z.epoch from :schema.zart_queue z
                    where z.bucket = p_bucket and z.id = c.id and z.worker = p_worker and z.epoch = c.epoch offset 0) q
      where c.kind <> 2 and c.kind <> 9
      on conflict do nothing;
      get diagnostics v_count = row_count;
    end;
    if 2 = any(c_kind) then
      -- An event's timeout takes the queue row first, as offer_event does: so it never waits for the key of an offer in
      -- an open transaction.
      insert into :schema.zart_tasks(
        bucket, id, run, step_key, epoch, kind, status, attempts, due, seconds, name, result, error)
      select p_bucket, q.id, q.run, c.key, q.epoch, c.kind, c.status, c.attempts,
             v_now + case when c.due between 0 and 4e9 then c.due when c.due < 0 then 0 end * interval '1 s',
             c.seconds, c.name, convert_from(c.result, 'UTF8')::json, convert_from(c.error, 'UTF8')::json
      from unnest(c_id, c_epoch, c_key, c_kind, c_status, c_attempts, c_due, c_seconds, c_name, c_result, c_error)
             c(id, epoch, key, kind, status, attempts, due, seconds, name, result, error),
           lateral (select z.id, z.run, z.epoch from :schema.zart_queue z
                    where z.bucket = p_bucket and z.id = c.id and z.worker = p_worker and z.epoch = c.epoch
                    for no key update skip locked) q
      where c.kind = 2
      on conflict do nothing;
      get diagnostics v_more = row_count;
      v_count := v_count + v_more;
    end if;
    if 9 = any(c_kind) then
      insert into :schema.zart_attempts(bucket, id, run, step_key, epoch, attempt, due, seconds, name, error)
      select p_bucket, q.id, q.run, c.key, q.epoch, c.attempts,
             v_now + case when c.due between 0 and 4e9 then c.due when c.due < 0 then 0 end * interval '1 s',
             c.seconds, c.name, convert_from(c.error, 'UTF8')::json
      from unnest(c_id, c_epoch, c_key, c_kind, c_attempts, c_due, c_seconds, c_name, c_error)
             c(id, epoch, key, kind, attempts, due, seconds, name, error),
           lateral (select z.id, z.run, z.epoch from :schema.zart_queue z
                    where z.bucket = p_bucket and z.id = c.id and z.worker = p_worker and z.epoch = c.epoch offset 0) q
      where c.kind = 9
      on conflict do nothing;
      get diagnostics v_more = row_count;
      v_count := v_count + v_more;
    end if;
    what := 'checkpointed'; extra := v_count; return next;
  end if;

  if cardinality(t_id) > 0 then
    select array_agg(q.id), array_agg(t.epoch), array_agg(q.run), array_agg(t.verb), array_agg(t.seen),
           array_agg(t.done_at), array_agg(t.due), array_agg(t.status), array_agg(t.output), array_agg(t.error),
           array_agg(q.crashes), array_agg(q.started_at)
      into m_id, m_epoch, m_run, m_verb, m_seen, m_done_at, m_due, m_status, m_output, m_error, m_crashes, m_started_at
    from unnest(t_id, t_epoch, t_verb, t_seen, t_done_at, t_due, t_status, t_output, t_error)
           t(id, epoch, verb, seen, done_at, due, status, output, error),
         lateral (select z.id, z.run, z.crashes, z.started_at from :schema.zart_queue z
                  where z.bucket = p_bucket and z.id = t.id and z.worker = p_worker and z.epoch = t.epoch
                  for update skip locked) q;
    what := 'applied'; extra := coalesce(cardinality(m_id), 0);
    if extra < cardinality(t_id) then ids := coalesce(m_id, '{}'); end if;
    return next;
    ids := null;
  end if;

  if m_id is not null then
    if cardinality(k_id) > 0 then
      select array_agg(convert_from(u.input, 'UTF8')::json order by u.o),
             array_agg(v_now + case when u.due between 0 and 4e9 then u.due when u.due < 0 then 0 end * interval '1 s'
                       order by u.o)
        into m_json, m_at from unnest(k_input, k_deadline) with ordinality u(input, due, o);
      with kid as (
        insert into :schema.zart_executions(
          bucket, execution_id, task_name, lane, priority, input, max_retries, deadline, parent, parent_run, parent_key,
          step_name, created_at, traceparent)
        select p_bucket, format('zart:%s/%s/%s', k.id, k.run, k.name), k.task, k.lane, k.priority, k.input,
               k.max_retries,
               case when starts_with(k.name, 'on_failure/') then k.deadline else least(p.deadline, k.deadline) end,
               k.id, k.run, k.key, k.name, v_now, coalesce(k.traceparent, p.traceparent)
        from unnest(k_id, k_run, k_key, k_name, k_task, k_lane, k_priority, m_json, k_max_retries, m_at, k_traceparent)
               k(id, run, key, name, task, lane, priority, input, max_retries, deadline, traceparent),
             lateral (select z.deadline, z.traceparent from :schema.zart_executions z
                      where z.bucket = p_bucket and z.id = k.id offset 0) p
        where k.id = any(m_id)
        on conflict do nothing
        returning zart_executions.id, zart_executions.lane, zart_executions.priority)
      insert into :schema.zart_queue(bucket, id, lane, priority, run_at)
      select p_bucket, kid.id, kid.lane, 2 * kid.priority, v_now from kid;
      get diagnostics v_count = row_count;
      if v_count < cardinality(k_id) then
        -- A child that ended, and whose outcome a retry of its parent took out of the journal, runs again.
        with again as (
          update :schema.zart_executions e
          set run = e.run + 1, status = 0, task_name = k.task, lane = k.lane, priority = k.priority, input = k.input,
              output = null, error = null, attempt = 0, crashes = 0, max_retries = k.max_retries,
              deadline = least(p.deadline, k.deadline), created_at = v_now, started_at = null, finished_at = null,
              traceparent = coalesce(k.traceparent, e.traceparent)
          from unnest(k_id, k_run, k_key, k_task, k_lane, k_priority, m_json, k_max_retries, m_at, k_traceparent)
                 k(id, run, key, task, lane, priority, input, max_retries, deadline, traceparent),
               lateral (select z.deadline from :schema.zart_executions z
                        where z.bucket = p_bucket and z.id = k.id offset 0) p
          where e.bucket = p_bucket and e.parent = k.id and e.parent_run = k.run and e.parent_key = k.key
            and e.status <> 0 and k.id = any(m_id)
            and not exists (select from :schema.zart_tasks j
                            where j.bucket = p_bucket and j.id = k.id and j.run = k.run and j.step_key = k.key)
          returning e.id, e.lane, e.priority, e.run, e.epoch),
        unlisted as (
          delete from :schema.zart_quarantined d using again where d.bucket = p_bucket and d.id = again.id)
        insert into :schema.zart_queue(bucket, id, lane, priority, run_at, run, epoch)
        select p_bucket, again.id, again.lane, 2 * again.priority, v_now, again.run, again.epoch from again;
      end if;
    end if;

    if 1 = any(m_verb) then
      delete from :schema.zart_queue q using unnest(m_id, m_verb) m(id, verb)
      where q.bucket = p_bucket and q.id = m.id and m.verb = 1;
      select array_agg(convert_from(u.output, 'UTF8')::json order by u.o),
             array_agg(convert_from(u.error, 'UTF8')::json order by u.o)
        into m_json, m_error_json from unnest(m_output, m_error) with ordinality u(output, error, o);
      if exists (select from unnest(m_verb, m_status, m_seen) m(verb, status, seen)
                 where m.verb = 1 and (m.status <> 1 or m.seen > 0)) then
        -- Children of a failed execution end with it: word is left for whoever delivers signals.
        insert into :schema.zart_signals(bucket, id, run, n)
        select p_bucket, m.id, m.run, -1
        from unnest(m_id, m_run, m_verb, m_status, m_seen) m(id, run, verb, status, seen)
        where m.verb = 1 and (m.status <> 1 or m.seen > 0)
          and exists (select from :schema.zart_executions e
                      where e.bucket = p_bucket and e.parent = m.id and e.parent_run = m.run and e.status = 0);
        get diagnostics v_count = row_count;
        if v_count > 0 then what := 'later'; extra := v_count; return next; end if;
      end if;
      if 5 = any(m_status) then
        insert into :schema.zart_quarantined(bucket, id, lane)
        select p_bucket, m.id, e.lane from unnest(m_id, m_verb, m_status) m(id, verb, status),
          lateral (select z.lane from :schema.zart_executions z
                   where z.bucket = p_bucket and z.id = m.id offset 0) e
        where m.verb = 1 and m.status = 5
        on conflict do nothing;
      end if;
      with ended as (
        update :schema.zart_executions e
        set status = m.status, epoch = m.epoch, output = m.output, error = m.error, crashes = m.crashes,
            started_at = m.started_at, finished_at = v_now
        from unnest(m_id, m_verb, m_status, m_epoch, m_json, m_error_json, m_crashes, m_started_at)
               m(id, verb, status, epoch, output, error, crashes, started_at)
        where e.bucket = p_bucket and e.id = m.id and m.verb = 1
        returning e.id, e.parent, e.parent_run, e.parent_key, e.step_name, e.status, e.attempt, e.output, e.error,
                  e.started_at),
      kept as (
        insert into :schema.zart_tasks(
          bucket, id, run, step_key, epoch, kind, status, attempts, seconds, name, result, error)
        select p_bucket, c.parent, c.parent_run, c.parent_key, 0, 3, c.status, c.attempt + 1,
               extract(epoch from v_now - c.started_at), c.step_name, c.output, c.error
        from ended c where c.parent is not null
        on conflict do nothing
        returning id, run),
      told as (select k.id, k.run, count(*)::int as n from kept k group by k.id, k.run)
      select array_agg(t.id), array_agg(t.run), array_agg(t.n) into p_id, p_run, p_n from told t;
      if p_id is not null then
        with free as materialized (
          select q.id, t.n from unnest(p_id, p_run, p_n) t(id, run, n),
            lateral (select z.id from :schema.zart_queue z
                     where z.bucket = p_bucket and z.id = t.id and z.run = t.run for no key update skip locked) q),
        woken as (
          update :schema.zart_queue q
          set done = q.done + f.n,
              run_at = case when q.worker is null and q.waiting and q.done + f.n >= q.done_at
                            then least(q.run_at, v_now) else q.run_at end
          from free f where q.bucket = p_bucket and q.id = f.id
          returning q.id, q.worker = p_worker as ours, q.worker is null and q.waiting and q.done >= q.done_at as risen)
        select array_agg(w.id), array_agg(w.id) filter (where w.ours), count(*) filter (where w.risen)
          into v_told, v_ours, v_more from woken w;
        insert into :schema.zart_signals(bucket, id, run, n)
        select p_bucket, t.id, t.run, t.n from unnest(p_id, p_run, p_n) t(id, run, n)
        where t.id <> all(coalesce(v_told, '{}'))
          and exists (select from :schema.zart_queue q where q.bucket = p_bucket and q.id = t.id and q.run = t.run);
        get diagnostics v_count = row_count;
        if v_count > 0 then what := 'later'; extra := v_count; return next; end if;
        if v_more > 0 then what := 'risen'; extra := v_more; return next; end if;
        if v_ours is not null then what := 'wake'; extra := null; ids := v_ours; return next; ids := null; end if;
      end if;
    end if;

    if 5 = any(m_verb) then
      -- The key is that of 'on_failure' in the key space of failures.
      select array_agg(convert_from(u.error, 'UTF8')::json order by u.o) into m_error_json
      from unnest(m_error) with ordinality u(error, o);
      insert into :schema.zart_tasks(bucket, id, run, step_key, epoch, kind, status, name, error)
      select p_bucket, m.id, m.run, 2414573162871402627, m.epoch, 8, 2, 'on_failure', m.error
      from unnest(m_id, m_run, m_verb, m_epoch, m_error_json) m(id, run, verb, epoch, error) where m.verb = 5
      on conflict do nothing;
      update :schema.zart_executions e set error = m.error
      from unnest(m_id, m_verb, m_error_json) m(id, verb, error)
      where e.bucket = p_bucket and e.id = m.id and m.verb = 5;
      insert into :schema.zart_signals(bucket, id, run, n)
      select p_bucket, m.id, m.run, -2 from unnest(m_id, m_run, m_verb) m(id, run, verb)
      where m.verb = 5
        and exists (select from :schema.zart_executions e
                    where e.bucket = p_bucket and e.parent = m.id and e.parent_run = m.run and e.status = 0);
      get diagnostics v_count = row_count;
      if v_count > 0 then what := 'later'; extra := v_count; return next; end if;
      select count(*) into v_more from unnest(m_verb) m(verb) where m.verb = 5;
      what := 'risen'; extra := v_more; return next;
    end if;

    if 4 = any(m_verb) then
      with moved as (
        delete from :schema.zart_tasks j using unnest(m_id, m_run, m_verb) m(id, run, verb)
        where m.verb = 4 and j.bucket = p_bucket and j.id = m.id and j.run = m.run and j.kind in (1, 3)
          and j.status <> 1
        returning j.id, j.run, j.step_key, j.epoch, j.kind, j.attempts, j.seconds, j.name, j.error, j.created_at),
      kept as (
        insert into :schema.zart_attempts(bucket, id, run, step_key, epoch, attempt, seconds, name, error, created_at)
        select p_bucket, d.id, d.run, d.step_key, d.epoch, greatest(d.attempts, a.last + 1), d.seconds, d.name, d.error,
               d.created_at
        from moved d, lateral (select coalesce(max(z.attempt), 0) as last from :schema.zart_attempts z
                               where z.bucket = p_bucket and z.id = d.id and z.run = d.run
                                 and z.step_key = d.step_key) a
        on conflict do nothing),
      children as (select d.id, count(*)::int as n from moved d where d.kind = 3 and d.epoch = 0 group by d.id)
      update :schema.zart_queue q set done = q.done - c.n from children c where q.bucket = p_bucket and q.id = c.id;
      select array_agg(convert_from(u.error, 'UTF8')::json order by u.o) into m_error_json
      from unnest(m_error) with ordinality u(error, o);
      update :schema.zart_executions e set attempt = e.attempt + 1, error = m.error
      from unnest(m_id, m_verb, m_error_json) m(id, verb, error)
      where e.bucket = p_bucket and e.id = m.id and m.verb = 4;
    end if;

    if m_verb && '{2,3,4,5}' then
      select array_agg(coalesce(v_now + case when u.due between 0 and 4e9 then u.due
                                             when u.due < 0 or (u.due is null and u.verb <> 2) then 0 end
                                        * interval '1 s', 'infinity') order by u.o)
        into m_at from unnest(m_due, m_verb) with ordinality u(due, verb, o);
      update :schema.zart_queue q
      set worker = null, lane = case when m.verb = 3 then q.lane else abs(q.lane) end,
          crashes = case when m.verb = 3 then q.crashes else 0 end,
          priority = q.priority & -2::smallint, waiting = m.verb = 2,
          done_at = coalesce(m.done_at, 2147483647),
          run_at = case when m.verb = 2 and (q.wakes <> m.seen or q.done >= m.done_at) then v_now else m.due_at end
      from unnest(m_id, m_verb, m_seen, m_done_at, m_at) m(id, verb, seen, done_at, due_at)
      where q.bucket = p_bucket and q.id = m.id and m.verb in (2, 3, 4, 5);
    end if;
  end if;

  if v_live and p_limit > 0 then
    return query
    update :schema.zart_queue q
    set worker = p_worker, epoch = q.epoch + 1, waiting = false, started_at = coalesce(q.started_at, v_now)
    where q.bucket = p_bucket and q.ctid = any(array(
      select c.ctid
      from unnest(p_lanes) with ordinality l(lane, o),
           lateral (select z.ctid from :schema.zart_queue z
                    where z.bucket = p_bucket and z.worker is null and z.lane = l.lane and z.run_at <= v_now
                    order by z.priority, z.run_at limit p_limit for update skip locked) c
      limit p_limit))
    returning 'claim', q.id, q.run, q.epoch, q.wakes, q.done, q.crashes,
              extract(epoch from v_now - q.run_at)::real, q.lane, null::bigint[];
  end if;
end $$;
