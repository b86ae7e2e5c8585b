-- zart_deliver_signals_1: brings the wake-ups of zart_signals, left there because a parent was locked, into the
--   parents.
-- Parameters: p_bucket. Row: signals seen (1000 at most), delivered; call again while any is seen.
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
  with s as materialized (
    select z.ctid, z.id, z.run, z.n from :schema.zart_signals z where z.bucket = p_bucket
    limit 1000 for update skip locked),
  told as materialized (select s.id, s.run, sum(s.n)::int as n from s group by s.id, s.run),
  free as materialized (
    select q.id, q.run, t.n from told t,
      lateral (select z.id, z.run from :schema.zart_queue z
               where z.bucket = p_bucket and z.id = t.id and z.run = t.run for no key update skip locked) q),
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
  select (select count(*) from s), (select count(*) from dropped);
end $$;
