-- count_unfinished: how many executions of a bucket have not ended. Parameters: $1 bucket. Locks: none. Index: none.
select count(*) from :schema.zart_queue q where q.bucket = $1
