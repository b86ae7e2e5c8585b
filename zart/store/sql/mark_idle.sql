-- mark_idle: notes whether workers wait for a hint ($1 bucket, $2 ids, $3 idle). Look for work again after it: what was
--   started before the mark was committed sent no hint. Rows: the ids marked; one whose row was locked is not among
--   them.
-- Locks: worker rows for no key update, skip locked. Index: primary key of zart_workers.
update :schema.zart_workers w set idle = $3::boolean
from (select z.id from :schema.zart_workers z
      where z.bucket = $1::smallint and z.id = any($2::bigint[]) and not z.dead for no key update skip locked) l
where w.bucket = $1::smallint and w.id = l.id
returning w.id
