-- expired_workers: workers whose lease has passed ($1 buckets). Locks: none. Index: none, the table is small.
select w.id, w.bucket, w.lease_until from :schema.zart_workers w
where w.bucket = any($1::smallint[]) and w.lease_until < clock_timestamp() order by w.lease_until
