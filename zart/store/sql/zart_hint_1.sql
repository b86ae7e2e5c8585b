-- zart_hint_1: tells idle workers that work may be ready, if there is one that serves it. Within a transaction the hint
--   goes out at its commit, once however often it is sent.
-- Parameters: p_bucket; p_queue and p_task_name, null: unknown. Returns whether there was one to tell.
-- Locks: none. Index: none, the table is small.
create function :schema.zart_hint_1(p_bucket smallint, p_queue text, p_task_name text) returns boolean language plpgsql
as $$
begin
  if exists (
    select from :schema.zart_workers w
    where w.bucket = p_bucket and w.idle and not w.dead and w.lease_until > clock_timestamp()
      and (p_task_name is null or p_task_name = any(w.task_names))
      and (p_queue is null or w.queues is null or p_queue = any(w.queues)))
  then
    perform pg_notify(:schema_text, '');
    return true;
  end if;
  return false;
end $$;
