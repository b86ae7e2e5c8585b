-- read_version: the newest migration applied, 0 if none. Locks: none.
select coalesce(max(m.version), 0) from :schema.zart_migrations m
