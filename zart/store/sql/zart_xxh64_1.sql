-- zart_xxh64_1: XXH64 of a text's UTF-8 bytes, the twin of step_key and bucket_of in _fastpath.pyx.
-- Measured on PostgreSQL 18, one of 2 cores: 3 us for an event's name of 13 bytes, 11 for a UUID's 36, 43 for 512.
-- zart_word_1: eight bytes as a number, the first the lowest. zart_rotate_1: bits that leave on the left return on the
--   right. zart_times_plus_1: a * b + c without its overflow; halves of 32 bits keep each product within a bigint.
-- Parameters: p_text, p_seed (0 for buckets, a key space for step keys). Returns 64 bits as a signed number.
-- The three are plain expressions, which the planner puts in place of their calls as long as a variable, and no
--   expression, is their first argument. Locks: none.
create function :schema.zart_word_1(p_bytes bytea, p_at int) returns bigint
language sql immutable strict parallel safe
return get_byte(p_bytes, p_at)::bigint | (get_byte(p_bytes, p_at + 1)::bigint << 8)
  | (get_byte(p_bytes, p_at + 2)::bigint << 16) | (get_byte(p_bytes, p_at + 3)::bigint << 24)
  | (get_byte(p_bytes, p_at + 4)::bigint << 32) | (get_byte(p_bytes, p_at + 5)::bigint << 40)
  | (get_byte(p_bytes, p_at + 6)::bigint << 48) | (get_byte(p_bytes, p_at + 7)::bigint << 56);

create function :schema.zart_rotate_1(p_word bigint, p_bits int) returns bigint
language sql immutable strict parallel safe
return (p_word << p_bits) | ((p_word >> (64 - p_bits)) & ((1::bigint << p_bits) - 1));

create function :schema.zart_times_plus_1(a bigint, b bigint, c bigint) returns bigint
language sql immutable strict parallel safe
return (
    ((((a & 4294967295) * ((b << 32) >> 32)) >> 32)
     + (((a & 4294967295) * ((b >> 32) + ((b >> 31) & 1))) & 4294967295)
     + (((a >> 32) * ((b << 32) >> 32)) & 4294967295)
     + (c >> 32)
     + (((((a & 4294967295) * ((b << 32) >> 32)) & 4294967295) + (c & 4294967295)) >> 32)
    ) << 32)
  | (((((a & 4294967295) * ((b << 32) >> 32)) & 4294967295) + (c & 4294967295)) & 4294967295);

create function :schema.zart_xxh64_1(p_text text, p_seed bigint) returns bigint
language plpgsql immutable strict parallel safe
as $$
declare
  prime_1 constant bigint := -7046029288634856825;
  prime_2 constant bigint := -4417276706812531889;
  prime_3 constant bigint := 1609587929392839161;
  prime_4 constant bigint := -8796714831421723037;
  prime_5 constant bigint := 2870177450012600261;
  v_bytes bytea := convert_to(p_text, 'UTF8');
  v_size int := octet_length(v_bytes);
  v_at int := 0;
  v_lanes bigint[];
  v_word bigint;
  v_digest bigint;
begin
  v_bytes := v_bytes || '\x00000000000000'::bytea;  -- so that the last few are read as a word too
  if v_size >= 32 then
    v_lanes := array[
      :schema.zart_times_plus_1(prime_1, 1, :schema.zart_times_plus_1(prime_2, 1, p_seed)),
      :schema.zart_times_plus_1(prime_2, 1, p_seed), p_seed, :schema.zart_times_plus_1(prime_1, -1, p_seed)];
    while v_at + 32 <= v_size loop
      for v_lane in 1..4 loop
        v_word := :schema.zart_word_1(v_bytes, v_at);
        v_word := :schema.zart_times_plus_1(v_word, prime_2, v_lanes[v_lane]);
        v_word := :schema.zart_rotate_1(v_word, 31);
        v_lanes[v_lane] := :schema.zart_times_plus_1(v_word, prime_1, 0);
        v_at := v_at + 8;
      end loop;
    end loop;
    v_digest := 0;
    for v_lane in 1..4 loop
      v_word := v_lanes[v_lane];
      v_word := :schema.zart_rotate_1(v_word, (array[1, 7, 12, 18])[v_lane]);
      v_digest := :schema.zart_times_plus_1(v_word, 1, v_digest);
    end loop;
    for v_lane in 1..4 loop
      v_word := v_lanes[v_lane];
      v_word := :schema.zart_times_plus_1(v_word, prime_2, 0);
      v_word := :schema.zart_rotate_1(v_word, 31);
      v_digest := v_digest # :schema.zart_times_plus_1(v_word, prime_1, 0);
      v_digest := :schema.zart_times_plus_1(v_digest, prime_1, prime_4);
    end loop;
  else
    v_digest := :schema.zart_times_plus_1(p_seed, 1, prime_5);
  end if;
  v_digest := :schema.zart_times_plus_1(v_digest, 1, v_size);
  while v_at + 8 <= v_size loop
    v_word := :schema.zart_word_1(v_bytes, v_at);
    v_word := :schema.zart_times_plus_1(v_word, prime_2, 0);
    v_word := :schema.zart_rotate_1(v_word, 31);
    v_digest := v_digest # :schema.zart_times_plus_1(v_word, prime_1, 0);
    v_digest := :schema.zart_rotate_1(v_digest, 27);
    v_digest := :schema.zart_times_plus_1(v_digest, prime_1, prime_4);
    v_at := v_at + 8;
  end loop;
  if v_at + 4 <= v_size then
    v_word := :schema.zart_word_1(v_bytes, v_at) & 4294967295;
    v_digest := v_digest # :schema.zart_times_plus_1(v_word, prime_1, 0);
    v_digest := :schema.zart_rotate_1(v_digest, 23);
    v_digest := :schema.zart_times_plus_1(v_digest, prime_2, prime_3);
    v_at := v_at + 4;
  end if;
  while v_at < v_size loop
    v_word := get_byte(v_bytes, v_at);
    v_digest := v_digest # :schema.zart_times_plus_1(v_word, prime_5, 0);
    v_digest := :schema.zart_rotate_1(v_digest, 11);
    v_digest := :schema.zart_times_plus_1(v_digest, prime_1, 0);
    v_at := v_at + 1;
  end loop;
  v_digest := v_digest # ((v_digest >> 33) & 2147483647);
  v_digest := :schema.zart_times_plus_1(v_digest, prime_2, 0);
  v_digest := v_digest # ((v_digest >> 29) & 34359738367);
  v_digest := :schema.zart_times_plus_1(v_digest, prime_3, 0);
  return v_digest # ((v_digest >> 32) & 4294967295);
end $$;
