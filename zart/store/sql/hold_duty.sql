-- hold_duty: takes or keeps a duty that one process of the cluster has at a time, by the database's clock; and tells the
--   schema's version, as read_version.
-- Parameters: $1 duty, $2 holder, $3 seconds until others may take it. Row: held, version, serves_from.
-- Locks: the duty's row, if it is free or ours, skip locked: nobody waits. A duty until long after now is free too: the
--   clock went back. Index: primary key.
with free as (
  select d.duty from :schema.zart_duties d
  where d.duty = $1 and (d.holder = $2 or d.until < clock_timestamp()
                         or d.until > clock_timestamp() + 2 * $3::float8 * interval '1 s')
  for update skip locked),
held as (
  update :schema.zart_duties d set holder = $2, until = clock_timestamp() + $3::float8 * interval '1 s'
  from free where d.duty = free.duty
  returning 1)
select exists (select from held) as held, coalesce(max(m.version), 0) as version,
       coalesce(max(m.serves_from), 0) as serves_from
from :schema.zart_migrations m
