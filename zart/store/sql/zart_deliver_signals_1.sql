-- zart_deliver_signals_1: brings the wake-ups of zart_signals, left there because a parent was locked, into the
--   parents.
-- Parameters: p_bucket. Row: seen (signals taken up, 1000 at most, and parents that are locked still), delivered; call
--   again while any is seen. Signals of locked parents are left alone, so they keep nobody else's waiting.
-- Locks: signals and queue rows, skip locked. Index: primary key of zart_queue.
create function :schema.zart_deliver_signals_1(p_bucket smallint)
returns table(seen bigint, delivered bigint) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
declare
  v_now timestamptz := now();
begin
  return query
  with parents as materialized (
    select z.id, z.run, exists (select from :schema.zart_queue q
                                where q.bucket = p_bucket and q.id = z.id and q.run = z.run) as there
    from :schema.zart_signals z where z.bucket = p_bucket group by z.id, z.run),
  mine as materialized (
    select q.id, q.run from parents p,
      lateral (select z.id, z.run from :schema.zart_queue z
               where z.bucket = p_bucket and z.id = p.id and z.run = p.run for no key update skip locked) q),
  s as materialized (
    select z.ctid, z.id, z.run, z.n from :schema.zart_signals z
    where z.bucket = p_bucket
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
  select (select count(*) from s)
         + (select count(*) from parents p
            where p.there and not exists (select from mine m where m.id = p.id and m.run = p.run)),
         (select count(*) from dropped);
end $$;
