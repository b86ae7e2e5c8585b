-- zart_json_1: the text that is kept of a JSON value, null being JSON's null. Refuses what the plain encoding of
--   _fastpath.pyx refuses and JSON can say: NUL, half a surrogate pair, integers beyond 64 bits, floats that no float8
--   holds, more than 200 levels, and a key '$zart' at the top. Usual values pass by the look of their text alone.
-- Parameters: p_value; p_where it is, for the error's text. Locks: none.
create function :schema.zart_json_1(p_value json, p_where text) returns text language plpgsql immutable
as $$
declare
  v_text constant text := coalesce(p_value::text, 'null');
  v_number text;
  v_reason text;
begin
  if octet_length(v_text) > 67108864 then
    raise program_limit_exceeded using
      message = format('%s: %s bytes are more than the 67108864 that are allowed', p_where, octet_length(v_text)),
      hint = 'Keep it elsewhere and pass where it is.';
  end if;
  if v_text ~ '\\u' and regexp_replace(
      replace(v_text, '\\', '  '), '\\u[dD][89abAB][[:xdigit:]]{2}\\u[dD][c-fC-F][[:xdigit:]]{2}', '', 'g'
    ) ~ '\\u(0000|[dD][89a-fA-F])'
  then
    v_reason := 'it holds a NUL character or half of a surrogate pair; take it out';
  elsif v_text ~ 'zart"|\\u' and p_value -> '$zart' is not null then
    v_reason := 'the key ''$zart'' is zart''s own there; use another';
  elsif length(v_text) - length(translate(v_text, '[{', '')) > 200
    and jsonb_path_exists(v_text::jsonb, 'strict $.**{200} ? (@.type() == "array" || @.type() == "object")')
  then
    v_reason := 'it is nested more than 200 deep; keep it flat';
  elsif v_text ~ '[0-9]{19}|[eE][+-]?[0-9]{3}' then
    for v_number in
      select part[1] from regexp_matches(
        regexp_replace(v_text, '"[^"\\]*(?:\\.[^"\\]*)*"', '', 'g'), '-?[0-9][0-9.eE+-]*', 'g') as parts(part)
    loop
      exit when v_reason is not null;
      if v_number ~ '^-?[0-9]{19,}$' then
        if length(v_number) > 20 or v_number::numeric not between -9223372036854775808 and 9223372036854775807 then
          v_reason := format('%s is an integer of more than 64 bits; pass it as a string', left(v_number, 60));
        end if;
      elsif length(v_number) > 200 or v_number ~ '[eE][+-]?[0-9]{3}' then
        begin
          perform v_number::float8;
        exception when numeric_value_out_of_range then
          v_reason := format('%s is beyond what a float8 holds; pass it as a string', left(v_number, 60));
        end;
      end if;
    end loop;
  end if;
  if v_reason is not null then
    raise invalid_parameter_value using message = format('%s: %s', p_where, v_reason);
  end if;
  return v_text;
end $$;
