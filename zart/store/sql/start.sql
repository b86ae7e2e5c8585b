-- start: starts executions of one task; see zart_start_1.
select execution_id, task_name, created from :schema.zart_start_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
