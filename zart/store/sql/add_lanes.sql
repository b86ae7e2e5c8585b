-- add_lanes: gives pairs that have no lane a number ($1 queues, $2 task names by column).
-- Locks: waits for an open transaction that adds the same pair, so never run it inside a caller's transaction.
-- Index: unique index on (queue, task_name).
insert into :schema.zart_lanes(queue, task_name)
select u.queue, u.task_name from unnest($1::text[], $2::text[]) u(queue, task_name)
where not exists (select from :schema.zart_lanes l where l.queue = u.queue and l.task_name = u.task_name)
order by u.queue collate "C", u.task_name collate "C"
on conflict do nothing
