-- find_lanes: lane numbers of pairs ($1 queues, $2 task names by column), the lowest of those that have several.
-- Locks: none. Index: zart_lanes_pair.
select l.queue, l.task_name, min(l.lane) as lane
from unnest($1::text[], $2::text[]) u(queue, task_name) join :schema.zart_lanes l using (queue, task_name)
group by l.queue, l.task_name
