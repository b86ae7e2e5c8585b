-- sample_queues: one bucket's share of the figures of all queues, oldest queue first; see zart_sample_queues_1.
-- Parameters: $1 bucket, $2 rows to count. unclaimable: those of `ready` whose task no live worker of that queue serves.
-- Locks: none. Index: as zart_sample_queues_1; zart_lanes and zart_workers are small.
select l.queue, coalesce(sum(s.ready), 0)::bigint as ready, coalesce(sum(s.running), 0)::bigint as running,
       coalesce(sum(s.waiting), 0)::bigint as waiting, coalesce(sum(s.expired), 0)::bigint as expired,
       coalesce(sum(s.quarantined), 0)::bigint as quarantined,
       coalesce(sum(case when s.ready > 0 and not exists (
         select from :schema.zart_workers w
         where w.bucket = $1 and not w.dead and w.lease_until > clock_timestamp() and l.task_name = any(w.task_names)
           and (w.queues is null or l.queue = any(w.queues))) then s.ready else 0 end), 0)::bigint as unclaimable,
       greatest(0, coalesce(max(s.oldest), 0))::float8 as oldest_ready
from :schema.zart_lanes l left join :schema.zart_sample_queues_1($1, $2) s on abs(s.lane) = l.lane
group by l.queue order by min(l.lane)
