-- end_migration: keeps that a migration was applied and which libraries it serves, and with the first one how many
--   buckets there are.
insert into :schema.zart_migrations(version, name, serves_from) values (:version, :migration, :serves_from);
insert into :schema.zart_settings(name, value) values ('buckets', :buckets) on conflict do nothing;
