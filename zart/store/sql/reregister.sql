-- reregister: registers a worker, as the heir of an older identity if there is one; see zart_reregister_1.
select id, run, epoch, wakes, done, lane from :schema.zart_reregister_1($1, $2, $3, $4, $5, $6, $7, $8, $9)
