-- cancel: ends an execution and its unfinished children as cancelled; see zart_cancel_1.
select what, id, worker from :schema.zart_cancel_1($1, $2, $3)
