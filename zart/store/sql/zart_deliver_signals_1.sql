-- zart_deliver_signals_1: acts on zart_signals. n > 0: so many children have ended while their parent was locked; it is
--   told now. n = -1: the parent failed, and its unfinished children end as cancelled; -2: the same, but what its
--   failure handler has begun goes on.
-- Parameters: p_bucket. Row: seen (signals taken up, 1000 at most, and those whose rows are locked still), delivered;
--   call again while any is seen. Signals of locked rows are left alone, so they keep nobody else's waiting.
-- Locks: signals and queue rows, skip locked. Index: primary key of zart_queue, zart_executions_child.
create function :schema.zart_deliver_signals_1(p_bucket smallint)
returns table(seen bigint, delivered bigint) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
declare
  v_now timestamptz := now();
  v_seen bigint := 0;
  v_ended bigint := 0;
  v_signal record;
  v_level bigint[];
  v_gone bigint[];
  v_left bigint;
  v_top boolean;
begin
  for v_signal in
    select z.ctid, z.id, z.run, z.n from :schema.zart_signals z
    where z.bucket = p_bucket and z.n < 0 limit 100 for update skip locked
  loop
    v_seen := v_seen + 1;
    v_left := 0;
    v_top := true;
    select coalesce(array_agg(c.id), '{}') into v_level from :schema.zart_executions c
    where c.bucket = p_bucket and c.parent = v_signal.id and c.parent_run = v_signal.run and c.status = 0
      and (v_signal.n = -1 or not starts_with(c.step_name, 'on_failure/'));
    while cardinality(v_level) > 0 loop
      with locked as materialized (
        select q.id from :schema.zart_queue q where q.bucket = p_bucket and q.id = any(v_level)
        for update skip locked),
      dropped as (
        delete from :schema.zart_queue q using locked l where q.bucket = p_bucket and q.id = l.id
        returning q.id, q.epoch, q.crashes, q.started_at),
      ended as (
        update :schema.zart_executions e
        set status = 4, epoch = d.epoch, crashes = d.crashes, started_at = d.started_at, finished_at = v_now
        from dropped d where e.bucket = p_bucket and e.id = d.id and e.status = 0)
      select coalesce(array_agg(d.id), '{}') into v_gone from dropped d;
      if v_top then
        select count(*) into v_left from :schema.zart_queue q where q.bucket = p_bucket and q.id = any(v_level);
      else  -- what is locked has lost its parent here: word is left for it, as it is under no parent that lives
        insert into :schema.zart_signals(bucket, id, run, n)
        select distinct p_bucket, c.parent, c.parent_run, -1
        from :schema.zart_queue q, lateral (select e.parent, e.parent_run from :schema.zart_executions e
                                            where e.bucket = p_bucket and e.id = q.id offset 0) c
        where q.bucket = p_bucket and q.id = any(v_level);
      end if;
      v_top := false;
      select coalesce(array_agg(c.id), '{}') into v_level
      from :schema.zart_executions c where c.bucket = p_bucket and c.parent = any(v_gone) and c.status = 0;
    end loop;
    if v_left = 0 then
      delete from :schema.zart_signals z where z.bucket = p_bucket and z.ctid = v_signal.ctid;
      v_ended := v_ended + 1;
    end if;
  end loop;

  return query
  with parents as materialized (
    select z.id, z.run, exists (select from :schema.zart_queue q
                                where q.bucket = p_bucket and q.id = z.id and q.run = z.run) as there
    from :schema.zart_signals z where z.bucket = p_bucket and z.n > 0 group by z.id, z.run),
  mine as materialized (
    select q.id, q.run from parents p,
      lateral (select z.id, z.run from :schema.zart_queue z
               where z.bucket = p_bucket and z.id = p.id and z.run = p.run for no key update skip locked) q),
  s as materialized (
    select z.ctid, z.id, z.run, z.n from :schema.zart_signals z
    where z.bucket = p_bucket and z.n > 0
      and (exists (select from mine m where m.id = z.id and m.run = z.run)
           or exists (select from parents p where p.id = z.id and p.run = z.run and not p.there))
    limit 1000 for update skip locked),
  free as materialized (
    select s.id, s.run, sum(s.n)::int as n from s, mine m where m.id = s.id and m.run = s.run group by s.id, s.run),
  woken as (
    update :schema.zart_queue q
    set done = q.done + f.n,
        run_at = case when q.worker is null and q.waiting and q.done + f.n >= q.done_at
                      then least(q.run_at, v_now) else q.run_at end
    from free f where q.bucket = p_bucket and q.id = f.id and q.run = f.run
    returning q.id, q.run),
  dropped as (
    delete from :schema.zart_signals z
    where z.bucket = p_bucket and z.ctid = any(array(
      select s.ctid from s
      where exists (select from woken w where w.id = s.id and w.run = s.run)
         or not exists (select from :schema.zart_queue q where q.bucket = p_bucket and q.id = s.id and q.run = s.run)))
    returning 1)
  select v_seen + (select count(*) from s)
         + (select count(*) from parents p
            where p.there and not exists (select from mine m where m.id = p.id and m.run = p.run)),
         v_ended + (select count(*) from dropped);
end $$;
