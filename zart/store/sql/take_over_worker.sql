-- take_over_worker: frees the claims of a worker that is gone; see zart_take_over_worker_1.
select what, id, crashes, execution_id from :schema.zart_take_over_worker_1($1, $2, $3, $4, $5)
