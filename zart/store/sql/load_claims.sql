-- load_claims: the records of claimed executions; see zart_load_claims_1.
select id, execution_id, task_name, input, attempt, max_retries, priority, deadline_in, step_name, parent, lane, age
from :schema.zart_load_claims_1($1, $2)
