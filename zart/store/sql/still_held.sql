-- still_held: which claims a worker still has ($1 bucket, $2 worker, $3 ids, $4 epochs).
-- Locks: none. Index: primary key of zart_queue.
select q.id, q.epoch
from unnest($3::bigint[], $4::int[]) u(id, epoch),
     lateral (select z.id, z.epoch from :schema.zart_queue z
              where z.bucket = $1::smallint and z.id = u.id and z.worker = $2::bigint and z.epoch = u.epoch offset 0) q
