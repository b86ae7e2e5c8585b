-- offer_event: offers an event in the caller's transaction: it is there if, and only if, that commits. For any client
--   and for triggers, as scheduler.offer_event.
-- Parameters: execution_id; name of the event; payload, JSON.
-- Returns accepted, already_offered (or its wait has timed out) or finished. Raises 22023, 22004 or 54000 for a value
--   that cannot be used, P0002 when there is no such execution.
-- Locks: the execution's queue row until the transaction ends; see zart_offer_event_1. So keep it short, and offer to
--   several in one order in all transactions.
create function :schema.offer_event(execution_id text, name text, payload json default null) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint;
  v_payload json;
  v_first int;
  v_last int;
  v_answer text;
  v_worker bigint;
begin
  perform :schema.zart_check_text_1(execution_id, 'execution_id', 512);
  perform :schema.zart_check_text_1(name, 'the name of the event', 512);
  v_payload := :schema.zart_json_1(
    payload, format('payload of event %L of execution %L', left(name, 60), left(execution_id, 60)));
  v_key := :schema.zart_xxh64_1(name, 1);
  v_first := :schema.zart_bucket_1(execution_id);
  v_last := v_first;
  if execution_id ^@ 'zart:' then  -- a child lives with its root, whose id is not known
    v_first := 0;
    v_last := :buckets::int - 1;
  end if;
  for v_bucket in v_first .. v_last loop
    select o.answer, o.worker into v_answer, v_worker
    from :schema.zart_offer_event_1(v_bucket::smallint, execution_id, v_key, name, v_payload) o;
    if v_answer = 'accepted' and v_worker is null then
      perform :schema.zart_hint_1(v_bucket::smallint, null, null);
    end if;
    if v_answer <> 'unknown' then
      return v_answer;
    end if;
  end loop;
  raise no_data_found using
    message = format('no execution has the id %L', execution_id),
    hint = 'Start it before, in a transaction that has committed or in this one; the view ' || :schema_text
           || '.zart_records shows those that exist.';
end $$;

-- With jsonb, and with JSON as text: this one takes literals and parameters of no type.
create function :schema.offer_event(execution_id text, name text, payload jsonb) returns text
language sql
return :schema.offer_event(execution_id, name, payload::text::json);

create function :schema.offer_event(execution_id text, name text, payload text) returns text
language sql
return :schema.offer_event(execution_id, name, payload::json);
