-- serves_from: 1
-- The record of every execution, written at its start and at its end. No index on a column that changes: the ending
--   stays HOT. started_by, cancelled_by: tokens of the calls that did so: one that is sent again, because its answer was
--   lost, knows its own doing by it.
create table :schema.zart_executions(
  id bigint generated always as identity primary key,
  parent bigint,
  parent_key bigint,
  deadline timestamptz,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz,
  lane int not null,
  run int not null default 1,
  epoch int not null default 0,
  attempt int not null default 0,
  max_retries int not null default 0,
  parent_run int,
  bucket smallint not null,
  priority smallint not null default 2,
  status smallint not null default 0,
  crashes smallint not null default 0,
  execution_id text not null unique,
  task_name text not null,
  step_name text,
  traceparent text,
  input json,
  output json,
  error json,
  started_by bigint,
  cancelled_by bigint
) with (fillfactor = 65);
create unique index zart_executions_child on :schema.zart_executions(parent, parent_run, parent_key)
  where parent is not null;

-- The only hot table: one narrow row per unfinished execution. lane < 0: set apart after a crash.
-- run_at = infinity: waits for a signal only. worker null: nobody holds it. priority: 2p+1 at start, 2p from the first
--   park on.
create table :schema.zart_queue(
  id bigint primary key,
  run_at timestamptz not null default now(),
  worker bigint,
  started_at timestamptz,
  lane int not null,
  run int not null default 1,
  epoch int not null default 0,
  wakes int not null default 0,
  done int not null default 0,
  done_at int not null default 0,
  bucket smallint not null,
  priority smallint not null default 5,
  crashes smallint not null default 0,
  waiting boolean not null default false
) with (
  fillfactor = 50, vacuum_truncate = false,
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 5000
);
-- Of several buckets, claims from an empty one never walk the backlog of the others: then the bucket leads this key.
create index zart_queue_due on :schema.zart_queue(:by_bucket lane, priority, run_at) where worker is null;
create index zart_queue_held on :schema.zart_queue(worker, id) where worker is not null;

-- The journal, insert-only. epoch 0: written by another than the execution's own worker (an event, a child's outcome).
--   offered_by: token of the call that offered the event.
create table :schema.zart_tasks(
  id bigint not null,
  step_key bigint not null,
  due timestamptz,
  created_at timestamptz not null default now(),
  run int not null,
  epoch int not null,
  seconds real,
  bucket smallint not null,
  kind smallint not null,
  status smallint not null,
  attempts smallint not null default 1,
  name text not null,
  result json,
  error json,
  offered_by bigint,
  primary key (id, run, step_key)
);

-- Failed tries. due: when the next one begins, null after the last.
create table :schema.zart_attempts(
  id bigint not null,
  step_key bigint not null,
  due timestamptz,
  created_at timestamptz not null default now(),
  run int not null,
  epoch int not null,
  seconds real,
  bucket smallint not null,
  attempt smallint not null,
  name text not null,
  error json,
  primary key (id, run, step_key, attempt)
);

-- Wake-ups for parents whose queue row was locked when a child ended; zart_deliver_signals_1 brings them in.
create table :schema.zart_signals(
  id bigint not null,
  run int not null,
  n int not null,
  bucket smallint not null
) with (vacuum_truncate = false);

-- One row per worker and bucket that it serves: the fence of its ticks. id: 63 random bits, never from a sequence.
create table :schema.zart_workers(
  id bigint not null,
  lease_until timestamptz not null,
  started_at timestamptz not null default now(),
  backend_start timestamptz,
  backend int,
  pid int not null,
  bucket smallint not null,
  dead boolean not null default false,
  idle boolean not null default false,
  host text not null,
  task_names text[] not null,
  queues text[],
  primary key (id, bucket)
) with (fillfactor = 10);

-- A number for each pair of queue and task; several for one that transactions have begun at the same time.
create table :schema.zart_lanes(
  lane int generated always as identity primary key,
  queue text not null,
  task_name text not null
);
create index zart_lanes_pair on :schema.zart_lanes(queue, task_name, lane);

-- Executions that ended as quarantined, so that they are counted without reading the records of all that has ended.
create table :schema.zart_quarantined(
  id bigint primary key,
  lane int not null,
  bucket smallint not null
);

-- What one process of the cluster does at a time: `until` passes unless its holder goes on.
create table :schema.zart_duties(
  duty text primary key,
  holder bigint not null default 0,
  until timestamptz not null default '-infinity'
);
insert into :schema.zart_duties(duty) values ('sample');

-- Executions as the API shows them. held and waiting tell running, waiting and pending apart while status is 0.
create view :schema.zart_records as
select e.id, e.bucket, e.execution_id, e.task_name, e.status, q.worker is not null as held,
       q.waiting and q.run_at > now() as waiting, e.run, l.queue, e.priority, e.input, e.output, e.error, e.attempt,
       e.max_retries, coalesce(q.crashes, e.crashes) as crashes, e.deadline, e.parent,
       p.execution_id as parent_execution_id, e.created_at, coalesce(q.started_at, e.started_at) as started_at,
       e.finished_at
from :schema.zart_executions e
left join :schema.zart_queue q on q.bucket = e.bucket and q.id = e.id
left join :schema.zart_executions p on p.bucket = e.bucket and p.id = e.parent
left join :schema.zart_lanes l on l.lane = e.lane;

:include zart_tick_1
:include zart_trx_1
:include zart_reregister_1
:include zart_take_over_worker_1
:include zart_evict_backend_1
:include zart_renew_leases_1
:include zart_start_1
:include zart_cancel_1
:include zart_restart_1
:include zart_release_1
:include zart_offer_event_1
:include zart_deliver_signals_1
:include zart_load_claims_1
:include zart_load_journal_1
:include zart_look_1
:include zart_ready_lanes_1
:include zart_waited_for_1
:include zart_sample_queues_1
:include zart_xxh64_1
:include zart_bucket_1
:include zart_lane_1
:include zart_add_lanes_1
:include zart_hint_1
:include zart_check_text_1
:include zart_seconds_1
:include zart_json_1
:include sql_start_execution
:include sql_offer_event
