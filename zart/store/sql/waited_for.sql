-- waited_for: those of some executions that have ended; see zart_waited_for_1.
select execution_id, task_name, status, run, output, error from :schema.zart_waited_for_1($1, $2)
