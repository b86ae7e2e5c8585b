-- begin_migration: makes the schema and the two tables that migrations are kept in, if they are not there.
-- A role that may not create schemas can use one that exists. Locks: waits 300 ms at most for each lock a migration
--   needs: whoever comes after it waits behind it.
set local lock_timeout = '300ms';
set local client_min_messages = warning;
do $$ begin
  if not exists (select from pg_catalog.pg_namespace where nspname = :schema_text) then
    create schema :schema_name;
  end if;
end $$;
create table if not exists :schema.zart_migrations(
  version int primary key,
  name text not null,
  serves_from int not null,
  applied_at timestamptz not null default now()
);
create table if not exists :schema.zart_settings(
  name text primary key,
  value text not null
);
