-- hold_duty: takes or keeps a duty that one process of the cluster has at a time, by the database's clock; and tells the
--   schema's version, as read_version.
-- Parameters: $1 duty, $2 holder, $3 seconds until others may take it. Row: held, version, serves_from.
-- Locks: the duty's row, if it is free or ours. Index: primary key.
with held as (
  update :schema.zart_duties d set holder = $2, until = clock_timestamp() + $3::float8 * interval '1 s'
  where d.duty = $1 and (d.holder = $2 or d.until < clock_timestamp())
  returning 1)
select exists (select from held) as held, coalesce(max(m.version), 0) as version,
       coalesce(max(m.serves_from), 0) as serves_from
from :schema.zart_migrations m
