-- zart_renew_leases_1: renews the leases of workers; an expired one that nobody took over lives again.
-- Parameters: p_bucket, p_ids, p_lease in seconds. Rows: the ids renewed; one that stays away twice running was taken
--   over.
-- Locks: worker rows for no key update, skip locked. Index: primary key of zart_workers.
create function :schema.zart_renew_leases_1(p_bucket smallint, p_ids bigint[], p_lease float8)
returns setof bigint language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
declare
  v_until timestamptz := clock_timestamp() + p_lease * interval '1 s';
begin
  return query
  update :schema.zart_workers w set lease_until = v_until
  from (select z.id from :schema.zart_workers z
        where z.bucket = p_bucket and z.id = any(p_ids) and not z.dead for no key update skip locked) l
  where w.bucket = p_bucket and w.id = l.id
  returning w.id;
end $$;
