-- trx: fence and checkpoint of a step's own transaction; see zart_trx_1.
select marked, held, stored from :schema.zart_trx_1($1, $2, $3, $4, $5, $6, $7, $8, $9)
