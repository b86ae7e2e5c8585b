-- end_migration: keeps that a migration was applied, and with the first one how many buckets there are.
insert into :schema.zart_migrations(version, name) values (:version, :migration);
insert into :schema.zart_settings(name, value) values ('buckets', :buckets) on conflict do nothing;
