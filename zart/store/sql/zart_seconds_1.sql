-- zart_seconds_1: the seconds in a duration, null for null; refuses what seconds_of in duration.py refuses. A month has
--   30 days, a year 365.25.
-- Parameters: p_duration; p_what it is, for the error's text. Locks: none.
create function :schema.zart_seconds_1(p_duration interval, p_what text) returns float8
language plpgsql immutable parallel safe
as $$
declare
  v_seconds constant float8 := extract(epoch from p_duration);
begin
  if not v_seconds between 0 and 3155760000 then
    raise invalid_parameter_value using
      message = format('%s must be from 0 seconds to 100 years, got %s', p_what, p_duration);
  end if;
  return v_seconds;
end $$;
