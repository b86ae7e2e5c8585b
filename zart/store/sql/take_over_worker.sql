-- take_over_worker: frees the claims of a worker that is gone; see zart_take_over_worker_1.
select what, id, crashes from :schema.zart_take_over_worker_1($1, $2, $3, $4)
