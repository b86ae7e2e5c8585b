-- read_checkpoints: what is stored under some keys, whoever wrote it ($1 bucket, $2 ids, $3 runs, $4 step keys by
--   column).
-- Rows: due_in in seconds from now. Locks: none. Index: primary key of zart_tasks.
select j.id, j.run, j.step_key, j.kind, j.status, j.attempts, j.name, j.result::text as result, j.error::text as error,
       extract(epoch from j.due - now())::float8 as due_in, j.epoch
from unnest($2::bigint[], $3::int[], $4::bigint[]) u(id, run, step_key),
     lateral (select z.* from :schema.zart_tasks z
              where z.bucket = $1::smallint and z.id = u.id and z.run = u.run and z.step_key = u.step_key offset 0) j
