-- read_timeline: which history of which cluster the server writes. Another answer than before: a replica was promoted, or
--   another server answers, and what was committed last may not be there. Only on a primary.
-- Locks: none.
select (select system_identifier from pg_control_system()) || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
