-- evict_backend: ends the database session of a worker; see zart_evict_backend_1.
select coalesce(:schema.zart_evict_backend_1($1, $2), false)
