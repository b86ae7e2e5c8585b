-- release: takes an execution out of quarantine; see zart_release_1.
select what, execution_id from :schema.zart_release_1($1, $2, $3)
