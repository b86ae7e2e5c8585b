-- zart_sample_queues_1: how many executions of each lane are in which state, and since when the oldest ready one waits.
-- Parameters: p_bucket; p_most: how many rows of each state are counted before lanes are cut short. Of each lane and
--   priority 500 ready and 500 waiting rows are counted in any case; `oldest` (seconds, null without a ready one) is
--   exact however many there are.
-- Rows: several per lane, to be added up. Negative lanes are those of work that is set apart.
-- Locks: none. Index: zart_queue_due, one range for each lane and priority that has rows; zart_queue_held, one range per
--   worker; zart_quarantined and zart_workers are small. Finished executions are not read.
create function :schema.zart_sample_queues_1(p_bucket smallint, p_most int)
returns table(
  lane int, ready bigint, waiting bigint, running bigint, expired bigint, quarantined bigint, oldest float8
) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_ready bigint := p_most;
  v_waiting bigint := p_most;
  v_lane int := -2147483648;
  v_priority smallint := -32768;
begin
  loop
    select q.lane, q.priority into v_lane, v_priority from :schema.zart_queue q
    where q.bucket = p_bucket and q.worker is null and (q.lane, q.priority) > (v_lane, v_priority)
    order by q.lane, q.priority limit 1;
    exit when not found;
    lane := v_lane; running := 0; expired := 0; quarantined := 0;
    select count(*), extract(epoch from v_now - min(c.run_at)) into ready, oldest
    from (select q.run_at from :schema.zart_queue q
          where q.bucket = p_bucket and q.worker is null and q.lane = v_lane and q.priority = v_priority
            and q.run_at <= v_now
          order by q.run_at limit greatest(v_ready, 500)) c;
    v_ready := v_ready - ready;
    select count(*) into waiting
    from (select from :schema.zart_queue q
          where q.bucket = p_bucket and q.worker is null and q.lane = v_lane and q.priority = v_priority
            and q.run_at > v_now
          limit greatest(v_waiting, 500)) c;
    v_waiting := v_waiting - waiting;
    return next;
  end loop;
  return query
  select h.lane, 0::bigint, 0::bigint, count(*) filter (where not h.lost), count(*) filter (where h.lost), 0::bigint,
         null::float8
  from (select q.lane, w.dead or w.lease_until < v_now as lost
        from :schema.zart_workers w,
             lateral (select z.lane from :schema.zart_queue z
                      where z.bucket = p_bucket and z.worker = w.id limit p_most) q
        where w.bucket = p_bucket limit p_most) h
  group by h.lane;
  return query
  select k.lane, 0::bigint, 0::bigint, 0::bigint, 0::bigint, count(*), null::float8
  from (select k.lane from :schema.zart_quarantined k where k.bucket = p_bucket limit p_most) k
  group by k.lane;
end $$;
