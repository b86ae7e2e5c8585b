-- zart_add_lanes_1: gives pairs that have no lane a number. One that an open transaction makes (zart_lane_1) is not
--   waited for: then the pair has two.
-- Parameters: k_queue, k_task_name by column.
-- Locks: an advisory one of this schema until the transaction ends, so that those who come at once make one lane: never
--   run it inside a caller's transaction. Index: zart_lanes_pair.
create function :schema.zart_add_lanes_1(k_queue text[], k_task_name text[]) returns void language plpgsql
as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('zart_add_lanes_1 of ' || :schema_text, 0));
  insert into :schema.zart_lanes(queue, task_name)
  select u.queue, u.task_name from unnest(k_queue, k_task_name) u(queue, task_name)
  where not exists (select from :schema.zart_lanes l where l.queue = u.queue and l.task_name = u.task_name);
end $$;
