-- find_lanes: lane numbers of pairs ($1 queues, $2 task names by column). Locks: none. Index: unique index on (queue,
--   task_name).
select l.queue, l.task_name, l.lane
from unnest($1::text[], $2::text[]) u(queue, task_name) join :schema.zart_lanes l using (queue, task_name)
