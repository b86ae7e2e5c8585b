-- start_execution: starts an execution in the caller's transaction: it exists if, and only if, that commits. For any
--   client and for triggers. As scheduler.start by the task's name: the task's own timeout counts from its first claim,
--   its own retries apply.
-- Parameters: execution_id, the idempotency key; task_name; data, JSON; queue; priority, 0 (first) to 1000; delay until
--   it may begin; timeout, counted from the end of the delay, in place of the task's own.
-- Returns true, or false when the id exists as an execution of this task, which is left as it is. Raises 22023, 22004
--   or 54000 for a value that cannot be used, 23505 when the id belongs to another task.
-- Locks: the id, for others that start it, until the transaction ends. So start several in one order in all
--   transactions. Measured on PostgreSQL 18, one of 2 cores: 68 us each, of which zart_start_1 takes 25.
create function :schema.start_execution(
  execution_id text, task_name text, data json default null, queue text default 'default', priority int default 2,
  delay interval default null, timeout interval default null
) returns boolean language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_delay float8;
  v_timeout float8;
  v_input text;
  v_bucket smallint;
  v_lane int;
  v_found record;
begin
  perform :schema.zart_check_text_1(execution_id, 'execution_id', 512);
  perform :schema.zart_check_text_1(task_name, 'task_name', 512);
  perform :schema.zart_check_text_1(queue, 'queue', 512);
  if execution_id ^@ 'zart:' then
    raise invalid_parameter_value using
      message = format('execution_id %L begins with ''zart:'', which zart keeps for children', left(execution_id, 60)),
      hint = 'Use another id.';
  end if;
  if (priority between 0 and 1000) is not true then
    raise invalid_parameter_value using
      message = format('priority must be a whole number, 0 (first) to 1000 (last), got %s',
                       coalesce(priority::text, 'null'));
  end if;
  v_delay := coalesce(:schema.zart_seconds_1(delay, 'delay'), 0);
  v_timeout := :schema.zart_seconds_1(timeout, 'timeout');
  if v_timeout = 0 then
    raise invalid_parameter_value using message = 'timeout must be more than 0 seconds; null means the task''s own';
  end if;
  v_input := :schema.zart_json_1(data, format('data of execution %L', left(execution_id, 60)));
  v_bucket := :schema.zart_bucket_1(execution_id);
  v_lane := :schema.zart_lane_1(queue, task_name);
  loop
    select s.task_name, s.created into v_found
    from :schema.zart_start_1(
      v_bucket, array[execution_id], array[v_input], task_name, v_lane, priority::smallint, v_delay, 0, v_timeout, null
    ) s;
    exit when found;  -- not when the one that existed was deleted before it could be read
  end loop;
  if v_found.task_name <> start_execution.task_name then
    raise unique_violation using
      message = format('execution %L already exists as %L, so it cannot be started as %L',
                       execution_id, v_found.task_name, start_execution.task_name),
      hint = 'Use another id.';
  end if;
  if v_found.created and v_delay = 0 then
    perform :schema.zart_hint_1(v_bucket, queue, start_execution.task_name);
  end if;
  return v_found.created;
end $$;

-- With jsonb, and with JSON as text: this one takes literals and parameters of no type.
create function :schema.start_execution(
  execution_id text, task_name text, data jsonb, queue text default 'default', priority int default 2,
  delay interval default null, timeout interval default null
) returns boolean language sql
return :schema.start_execution(execution_id, task_name, data::text::json, queue, priority, delay, timeout);

create function :schema.start_execution(
  execution_id text, task_name text, data text, queue text default 'default', priority int default 2,
  delay interval default null, timeout interval default null
) returns boolean language sql
return :schema.start_execution(execution_id, task_name, data::json, queue, priority, delay, timeout);
