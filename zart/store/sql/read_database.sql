-- read_database: which database of which cluster the session is in. Locks: none.
select (select system_identifier from pg_control_system()) || '/' || current_database()
