-- who_blocks: the oldest transaction of others that holds a lock on a table of the schema, as text; no row if none does.
--   What a role may not see of other roles' sessions is left out.
-- Parameters: the schema's name. Locks: none. Index: none, it reads the server's state.
select format('session %s of %L (%s, in a transaction for %s) holds a lock on table %s', a.pid, a.usename,
              coalesce(nullif(a.application_name, ''), 'no application name'),
              coalesce(round(extract(epoch from clock_timestamp() - a.xact_start)) || ' s', 'a while'), c.relname) as who
from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
join pg_stat_activity a on a.pid = l.pid
where l.granted and l.locktype = 'relation' and n.nspname = $1 and c.relkind in ('r', 'p')
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and l.pid <> pg_backend_pid()
order by a.xact_start limit 1
