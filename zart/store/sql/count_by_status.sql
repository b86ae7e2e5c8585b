-- count_by_status: how many executions there are of each status, children included ($1 buckets).
-- Locks: none. Index: none: it reads every record, so it is for people and checks, not for polling.
select case e.status
         when 0 then case when q.worker is not null then 'running'
                          when q.waiting and q.run_at > now() then 'waiting' else 'pending' end
         when 1 then 'completed' when 2 then 'failed' when 4 then 'cancelled' when 5 then 'quarantined' end as status,
       count(*) as executions
from :schema.zart_executions e left join :schema.zart_queue q on q.bucket = e.bucket and q.id = e.id
where e.bucket = any($1::smallint[]) group by 1
