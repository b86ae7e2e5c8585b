-- zart_look_1: which of a worker's waiting bodies have something to hear: a wake-up, their children's end, or a lost
--   claim.
-- Parameters: p_bucket, p_worker; p_ids, p_epochs, p_seen (wakes known; -1: tell them in any case), p_done_at (children
--   awaited) by column.
-- Rows: wakes as they are now; null when the claim is gone (cancelled, or taken over).
-- Locks: none. Index: primary key of zart_queue.
create function :schema.zart_look_1(
  p_bucket smallint, p_worker bigint, p_ids bigint[], p_epochs int[], p_seen int[], p_done_at int[]
) returns table(id bigint, wakes int) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
  return query
  select u.id, q.wakes from unnest(p_ids, p_epochs, p_seen, p_done_at) u(id, epoch, seen, done_at)
  left join lateral (select z.id, z.wakes, z.done from :schema.zart_queue z
                     where z.bucket = p_bucket and z.id = u.id and z.worker = p_worker and z.epoch = u.epoch
                     offset 0) q on true
  where q.id is null or q.wakes <> u.seen or q.done >= u.done_at;
end $$;
