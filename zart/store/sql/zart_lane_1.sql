-- zart_lane_1: the lane of a queue and a task, made in the caller's transaction if none is seen. It waits for nobody
--   and nobody for it: transactions that begin a pair at once make a lane each, later starts take the lowest they see.
-- Parameters: p_queue, p_task_name. Locks: none. Index: zart_lanes_pair.
create function :schema.zart_lane_1(p_queue text, p_task_name text) returns int language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_lane int;
begin
  select l.lane into v_lane from :schema.zart_lanes l
  where l.queue = p_queue and l.task_name = p_task_name order by l.lane limit 1;
  if not found then
    insert into :schema.zart_lanes(queue, task_name) values (p_queue, p_task_name) returning lane into v_lane;
  end if;
  return v_lane;
end $$;
