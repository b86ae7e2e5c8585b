-- load_journal: journals, failed tries and counters of runs, in one snapshot; see zart_load_journal_1.
select id, what, step_key, kind, status, attempts, name, result, error, due_in, epoch, seconds, began_ago, wakes, done,
  traceparent
from :schema.zart_load_journal_1($1, $2, $3, $4)
