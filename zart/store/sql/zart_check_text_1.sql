-- zart_check_text_1: refuses what cannot be an id or a name, as checked_text in names.py does.
-- Parameters: p_text; p_what it is, for the error's text; p_most bytes of UTF-8. Locks: none.
create function :schema.zart_check_text_1(p_text text, p_what text, p_most int) returns void
language plpgsql immutable parallel safe
as $$
declare
  v_size int := octet_length(convert_to(p_text, 'UTF8'));
begin
  if v_size is null then
    raise null_value_not_allowed using message = format('%s must not be null', p_what);
  elsif v_size = 0 then
    raise invalid_parameter_value using message = format('%s must not be empty', p_what);
  elsif v_size > p_most then
    raise invalid_parameter_value using
      message = format('%s has %s bytes, at most %s are allowed, got %L...', p_what, v_size, p_most, left(p_text, 60)),
      hint = 'Shorten it, or use a hash of it.';
  end if;
end $$;
