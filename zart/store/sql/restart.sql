-- restart: begins a finished execution again as its next run; see zart_restart_1.
select :schema.zart_restart_1($1, $2, $3)
