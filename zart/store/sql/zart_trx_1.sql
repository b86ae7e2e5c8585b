-- zart_trx_1: the last statement of a step's own transaction, right before its COMMIT: the fence, and the checkpoint.
--   Sent again on another connection and rolled back, it waits for a transaction that was committing, and tells whether
--   the checkpoint is there.
-- Parameters: p_bucket, p_worker; the claim p_id, p_epoch; the checkpoint p_key, p_name, p_attempts, p_seconds, p_result.
-- Rows: one. marked: this is the transaction that begin_trx began (else nothing was looked at). held: the worker is not
--   dead and has the claim. stored: the checkpoint is this one; if not, another stands there.
-- Locks: worker row and queue row for key share: who frees the claim waits, or passes it over, until COMMIT. That must
--   come within the timeouts set here, whatever becomes of the client. With an old snapshot (repeatable read) they
--   conflict with a claim that was freed since, because that is done under `for update`, and with nothing else:
--   leases are renewed, and wake-ups counted, by updates that touch no key.
-- Index: primary keys.
create function :schema.zart_trx_1(
  p_bucket smallint, p_worker bigint, p_id bigint, p_epoch int, p_key bigint, p_name text, p_attempts smallint,
  p_seconds real, p_result bytea
) returns table(marked boolean, held boolean, stored boolean) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_run int;
  v_result json := convert_from(p_result, 'UTF8')::json;
  v_now timestamptz := clock_timestamp();  -- now() is when the step's transaction began
begin
  marked := coalesce(current_setting('zart.trx', true) = 'open', false); held := false; stored := false;
  if marked then
    perform set_config('lock_timeout', '5s', true), set_config('idle_in_transaction_session_timeout', '5s', true);
    perform 1 from :schema.zart_workers w
    where w.bucket = p_bucket and w.id = p_worker and not w.dead for key share;
    held := found;
    if held then
      select z.run into v_run from :schema.zart_queue z
      where z.bucket = p_bucket and z.id = p_id and z.worker = p_worker and z.epoch = p_epoch for key share;
      held := found;
    end if;
    if held then
      insert into :schema.zart_tasks(
        bucket, id, run, step_key, epoch, kind, status, attempts, seconds, name, result, created_at)
      values (p_bucket, p_id, v_run, p_key, p_epoch, 1, 1, p_attempts, p_seconds, p_name, v_result, v_now)
      on conflict do nothing;
      stored := found;
    end if;
  end if;
  return next;
end $$;
