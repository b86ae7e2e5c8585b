-- read_version: the newest migration applied and the oldest library it serves, 0 if none. Locks: none.
select coalesce(max(m.version), 0) as version, coalesce(max(m.serves_from), 0) as serves_from
from :schema.zart_migrations m
