-- note_turns: notes the trace contexts of turns that begin, for the turn after each ($1 bucket, $2 worker; columns $3
--   ids, $4 epochs, $5 W3C traceparents). A row that somebody has locked goes without.
-- Locks: queue rows for no key update, skip locked. Index: primary key of zart_queue.
update :schema.zart_queue q set traceparent = l.traceparent
from unnest($3::bigint[], $4::int[], $5::text[]) u(id, epoch, traceparent),
     lateral (select z.id, u.traceparent from :schema.zart_queue z
              where z.bucket = $1::smallint and z.id = u.id and z.worker = $2::bigint and z.epoch = u.epoch
              for no key update skip locked) l
where q.bucket = $1::smallint and q.id = l.id
