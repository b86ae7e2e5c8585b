-- zart_bucket_1: the bucket of an execution that somebody started, as bucket_of in _fastpath.pyx. The number of buckets
--   is put in by the migration.
-- Parameters: p_execution_id. Locks: none. Index: none.
create function :schema.zart_bucket_1(p_execution_id text) returns smallint
language plpgsql immutable strict parallel safe
as $$
declare
  v_buckets constant bigint := :buckets;
  v_digest bigint;
begin
  if v_buckets = 1 then
    return 0;
  end if;
  v_digest := :schema.zart_xxh64_1(p_execution_id, 0);  -- of 64 bits without a sign, so divided in two steps
  return (((v_digest >> 1) & 9223372036854775807) % v_buckets * 2 + (v_digest & 1)) % v_buckets;
end $$;
