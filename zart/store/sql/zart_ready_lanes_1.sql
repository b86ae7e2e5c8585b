-- zart_ready_lanes_1: lanes that have claimable work now. Negative: work set apart after a crash.
-- Parameters: p_bucket, p_task_names and p_queues (null: all) that are served.
-- Locks: none. Index: zart_queue_due, one probe per lane.
create function :schema.zart_ready_lanes_1(p_bucket smallint, p_task_names text[], p_queues text[])
returns setof int language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
begin
  return query
  select s.lane from :schema.zart_lanes l, lateral (values (l.lane), (-l.lane)) s(lane)
  where l.task_name = any(p_task_names) and (p_queues is null or l.queue = any(p_queues))
    and exists (select from :schema.zart_queue q
                where q.bucket = p_bucket and q.worker is null and q.lane = s.lane and q.run_at <= now() offset 0);
end $$;
