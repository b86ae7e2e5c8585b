-- read_buckets: how many buckets executions are spread over. Locks: none.
select s.value::int from :schema.zart_settings s where s.name = 'buckets'
