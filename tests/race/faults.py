"""Faults that a change of the statements could bring in, each with the interleaving that must see it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.race import interleavings as races
from tests.race.interleavings import Interleaving


@dataclass(frozen=True, slots=True)
class Fault:
    """A passage of a function's text and what it is replaced by."""

    name: str
    function: str
    replacements: tuple[tuple[str, str], ...]
    seen_by: Interleaving


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
        races.event_between_look_and_park,
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
        races.timeout_of_an_event_offered_in_an_open_transaction,
    ),
    Fault(
        "a restart begins the epochs again",
        "zart_restart_1",
        (("v_now, a.run, a.epoch from again a", "v_now, a.run, 0 from again a"),),
        races.turn_of_a_former_run,
    ),
)
