-- read_deaths: how the processes of executions died last, and what is the last thing that these have in their journals
--   ($1 bucket, $2 ids). Locks: none. Index: primary keys; only the journals of these are read.
select e.id, e.error::text as death,
       (select t.name from :schema.zart_tasks t
        where t.bucket = $1::smallint and t.id = e.id and t.run = e.run order by t.created_at desc limit 1) as last_name
from :schema.zart_executions e where e.bucket = $1::smallint and e.id = any($2::bigint[])
