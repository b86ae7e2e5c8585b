-- lanes_served: lanes of a worker ($1 task names, $2 queues, null: all). Locks: none. Index: none, the table is small.
select l.lane, l.queue, l.task_name from :schema.zart_lanes l
where l.task_name = any($1::text[]) and ($2::text[] is null or l.queue = any($2::text[])) order by l.lane
