-- read_leases: all workers and how long their leases have yet ($1 buckets). Locks: none. Index: none, the table is
--   small.
select w.id, w.bucket, w.lease_until, extract(epoch from w.lease_until - clock_timestamp())::float8 as remaining, w.dead
from :schema.zart_workers w
where w.bucket = any($1::smallint[])
