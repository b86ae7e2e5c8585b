"""Faults that a change of the statements could bring in, each with the interleaving that must see it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.race import event_interleavings as event_races
from tests.race import interleavings as races
from tests.race.interleavings import Interleaving


@dataclass(frozen=True, slots=True)
class Fault:
    """A passage of a function's text and what it is replaced by. `at_random`: random play of events sees it too."""

    name: str
    function: str
    replacements: tuple[tuple[str, str], ...]
    seen_by: Interleaving
    at_random: bool = False


FAULTS: tuple[Fault, ...] = (
    Fault(
        "the fence does not lock the worker row",
        "zart_tick_1",
        (("w.id = p_worker and not w.dead for key share;", "w.id = p_worker and not w.dead;"),),
        races.takeover_while_the_last_tick_commits,
    ),
    Fault(
        "the fence lets dead workers pass",
        "zart_tick_1",
        (("w.id = p_worker and not w.dead for key share;", "w.id = p_worker for key share;"),),
        races.tick_of_a_worker_taken_over,
    ),
    Fault(
        "takeover does not lock the worker row first",
        "zart_take_over_worker_1",
        (("w.lease_until < clock_timestamp())\n  for update skip locked;", "w.lease_until < clock_timestamp());"),),
        races.takeover_while_the_last_tick_commits,
    ),
    Fault(
        "reregistration does not lock the former identity's row first",
        "zart_reregister_1",
        (("w.id = p_old and not w.dead for update;", "w.id = p_old and not w.dead;"),),
        races.reregistration_while_the_last_tick_commits,
    ),
    Fault(
        "reregistration leaves the former identity as it is",
        "zart_reregister_1",
        (("  if found then\n    update", "  if false then\n    update"),),
        races.tick_of_a_former_identity,
    ),
    Fault(
        "parking does not compare wakes",
        "zart_tick_1",
        (("(q.wakes <> m.seen or q.done >= m.done_at)", "q.done >= m.done_at"),),
        event_races.event_between_look_and_park,
        at_random=True,
    ),
    Fault(
        "parking does not compare finished children",
        "zart_tick_1",
        (("(q.wakes <> m.seen or q.done >= m.done_at)", "q.wakes <> m.seen"),),
        races.parent_parks_in_the_tick_that_ends_its_child,
    ),
    Fault(
        "no signal is left for a locked parent",
        "zart_tick_1",
        (("where t.id <> all(coalesce(v_told, '{}'))", "where false"),),
        races.child_ends_while_its_parent_is_locked,
    ),
    Fault(
        "signals of locked parents are taken up",
        "zart_deliver_signals_1",
        (
            (
                "      and (exists (select from mine m where m.id = z.id and m.run = z.run)\n"
                "           or exists (select from parents p where p.id = z.id and p.run = z.run and not p.there))\n",
                "",
            ),
        ),
        races.signals_of_a_locked_parent_before_those_of_another,
    ),
    Fault(
        "a tick waits for the row of a parent",
        "zart_tick_1",
        (("z.run = t.run for no key update skip locked) q),", "z.run = t.run for no key update) q),"),),
        races.last_two_children_end_on_two_workers_at_once,
    ),
    Fault(
        "the parent of a cancelled child is told only later",
        "zart_cancel_1",
        (
            (
                "for no key update skip locked) q),\n        told",
                "and false for no key update skip locked) q),\n        told",
            ),
        ),
        races.child_is_cancelled_by_itself,
    ),
    Fault(
        "a cancel that cannot tell the parent leaves no word",
        "zart_cancel_1",
        (("from kept where not exists (select from told)", "from kept where false"),),
        races.child_is_cancelled_while_its_parent_is_locked,
    ),
    Fault(
        "children of one parent are not counted together",
        "zart_tick_1",
        (("count(*)::int as n from kept k group by k.id, k.run)", "1 as n from kept k)"),),
        races.children_end_in_one_tick,
    ),
    Fault(
        "a tick that adds children does not lock their parent",
        "zart_tick_1",
        (("z.epoch = t.epoch\n                  for update skip locked) q;", "z.epoch = t.epoch offset 0) q;"),),
        races.children_added_while_cancelled,
    ),
    Fault(
        "cancel reads the children before it has the parent",
        "zart_cancel_1",
        (
            ("  v_first boolean := true;", "  v_first boolean := true;\n  v_next bigint[];"),
            (
                "    perform 1 from :schema.zart_queue q",
                "    select coalesce(array_agg(c.id), '{}') into v_next\n"
                "    from :schema.zart_executions c where c.parent = any(v_level) and c.status = 0;\n"
                "    perform 1 from :schema.zart_queue q",
            ),
            (
                "    select coalesce(array_agg(c.id), '{}') into v_level\n"
                "    from :schema.zart_executions c"
                " where c.bucket = p_bucket and c.parent = any(v_gone) and c.status = 0;",
                "    v_level := v_next;",
            ),
        ),
        races.children_added_while_cancelled,
    ),
    Fault(
        "a tick waits for queue rows",
        "zart_tick_1",
        (("z.epoch = t.epoch\n                  for update skip locked) q;", "z.epoch = t.epoch for update) q;"),),
        races.row_held_by_an_open_transaction,
    ),
    Fault(
        "an event's timeout does not take the queue row first",
        "zart_tick_1",
        (
            (
                "z.epoch = c.epoch\n                    for no key update skip locked) q",
                "z.epoch = c.epoch\n                    offset 0) q",
            ),
        ),
        event_races.timeout_of_an_event_offered_in_an_open_transaction,
        at_random=True,
    ),
    Fault(
        "an event's timeout waits for the queue row",
        "zart_tick_1",
        (
            (
                "z.epoch = c.epoch\n                    for no key update skip locked) q",
                "z.epoch = c.epoch\n                    for no key update) q",
            ),
        ),
        event_races.timeout_of_an_event_offered_in_an_open_transaction,
        at_random=True,
    ),
    Fault(
        "a parked body is not noted as waiting",
        "zart_tick_1",
        (("waiting = m.verb = 2,", "waiting = false,"),),
        event_races.event_for_a_parked_body,
        at_random=True,
    ),
    Fault(
        "an event's timeout fails when the event is there",
        "zart_tick_1",
        (("      where c.kind = 2\n      on conflict do nothing;", "      where c.kind = 2;"),),
        event_races.timeout_after_its_event,
        at_random=True,
    ),
    Fault(
        "an offer takes the event's key before the queue row",
        "zart_offer_event_1",
        (
            (
                "    where q.bucket = p_bucket and q.id = v_id for no key update;\n",
                "    where q.bucket = p_bucket and q.id = v_id;\n",
            ),
        ),
        event_races.event_while_its_timeout_is_written,
    ),
    Fault(
        "an offer does not count as a wake-up",
        "zart_offer_event_1",
        (("set wakes = (q.wakes + 1) & 2147483647,", "set wakes = q.wakes,"),),
        event_races.event_between_look_and_park,
        at_random=True,
    ),
    Fault(
        "an offer wakes nobody who sleeps",
        "zart_offer_event_1",
        (("run_at = case when q.worker is null and q.waiting", "run_at = case when false"),),
        event_races.event_for_a_parked_body,
        at_random=True,
    ),
    Fault(
        "an offer wakes those who do not wait",
        "zart_offer_event_1",
        (("q.worker is null and q.waiting then", "q.worker is null then"),),
        event_races.event_for_a_delayed_execution,
    ),
    Fault(
        "an offer fails when another was first",
        "zart_offer_event_1",
        (("p_payload) on conflict do nothing;", "p_payload);"),),
        event_races.event_offered_twice,
        at_random=True,
    ),
    Fault(
        "a later event replaces the first",
        "zart_offer_event_1",
        (
            (
                "p_payload) on conflict do nothing;",
                "p_payload) on conflict (id, run, step_key) do update set status = 1, result = excluded.result;",
            ),
        ),
        event_races.event_after_its_timeout,
        at_random=True,
    ),
    Fault(
        "every sender is told that theirs was accepted",
        "zart_offer_event_1",
        (("      answer := 'already_offered';\n", "      answer := 'accepted';\n"),),
        event_races.event_offered_twice,
        at_random=True,
    ),
    Fault(
        "the counters are read after the journal",
        "zart_load_journal_1",
        (
            ("language plpgsql stable", "language plpgsql"),
            (
                "begin\n  return query\n",
                "begin\n  return query\n"
                "  select j.id, 'checkpoint', j.step_key, j.kind, j.status, j.attempts, j.name, j.result::text,"
                " j.error::text, null::float8, j.epoch, j.seconds, null::float8, null::int, null::int\n"
                "  from unnest(p_ids, p_runs) u(id, run), :schema.zart_tasks j\n"
                "  where j.bucket = p_bucket and j.id = u.id and u.run = j.run;\n"
                "  return query\n",
            ),
            ("and j.run = u.run\n", "and false\n"),
        ),
        event_races.event_while_the_journal_is_read,
    ),
    Fault(
        "a look does not tell of wake-ups",
        "zart_look_1",
        (("q.wakes <> u.seen or ", ""),),
        event_races.event_for_a_body_that_waits_in_memory,
        at_random=True,
    ),
    Fault(
        "a look does not tell of lost claims",
        "zart_look_1",
        (("q.id is null or ", ""),),
        event_races.cancel_of_a_body_that_waits_in_memory,
        at_random=True,
    ),
    Fault(
        "a restart begins the epochs again",
        "zart_restart_1",
        (("v_now, a.run, a.epoch from again a", "v_now, a.run, 0 from again a"),),
        races.turn_of_a_former_run,
    ),
    Fault(
        "a release begins the epochs again",
        "zart_release_1",
        (("v_it.run, v_it.epoch, v_done)", "v_it.run, 0, v_done)"),),
        races.turn_before_a_release,
    ),
    Fault(
        "a release does not lock the children",
        "zart_release_1",
        (("  order by q.id for update;", "  order by q.id;"),),
        races.child_ends_while_its_parent_is_released,
    ),
    Fault(
        "a release leaves the signals of its children",
        "zart_release_1",
        (("s.bucket = p_bucket and s.id = v_it.id and s.run = v_it.run;", "false;"),),
        races.child_is_cancelled_while_its_parent_is_released,
    ),
    Fault(
        "a release leaves word that its children are to end",
        "zart_release_1",
        (("and s.run = v_it.run;", "and s.run = v_it.run and s.n > 0;"),),
        races.release_before_the_children_have_ended,
    ),
)
