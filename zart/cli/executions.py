"""The verbs on executions: start, status, wait, cancel, release, list, history, event."""

from __future__ import annotations

import shlex
import uuid
from typing import Annotated, Any

import typer

from zart.cli.command import Failed, one_line, parse_duration, parse_json
from zart.cli.database import DatabaseUrl, Embedded, Schema, SchemaDefault, ask
from zart.cli.output import error_text, print_execution, print_executions, print_json, print_steps
from zart.errors import WaitTimedOut
from zart.model import EventAnswer, ExecutionRecord, ExecutionStatus, Page, StepRecord
from zart.scheduler import PostgresScheduler

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
ExecutionId = Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")]


def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered name of the durable function.")],
    data: Annotated[str, typer.Option("--data", metavar="JSON", help="Its input.")] = "null",
    execution_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Id of the execution: the same id starts once. Random if left out."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Queue to put it in.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 runs first.")] = None,
    delay: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Run it no sooner, as 500ms, 30s, 10m, 2h, 3d; seconds without a unit."),
    ] = "0s",
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Start an execution, or find the one that has this id already."""
    value = parse_json(data, "--data")
    options: dict[str, Any] = {"queue": queue, "priority": priority, "delay": parse_duration(delay, "--delay")}
    given = {name: value for name, value in options.items() if value is not None}
    wanted_id = uuid.uuid4().hex if execution_id is None else execution_id

    async def work(scheduler: PostgresScheduler) -> bool:
        return (await scheduler.start(wanted_id, name, value, **given)).created

    created = ask(database_url, embedded, schema, work)
    if as_json:
        print_json({"execution_id": wanted_id, "created": created})
    elif created:
        print(f"started {one_line(wanted_id)}")
    else:
        print(f"{one_line(wanted_id)} existed already, it was not started again")


def status(
    execution_id: ExecutionId,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Show one execution."""

    async def work(scheduler: PostgresScheduler) -> ExecutionRecord:
        return await scheduler.status(execution_id)

    record = ask(database_url, embedded, schema, work, makes_data=False)
    print_json(record) if as_json else print_execution(record)


def wait(
    execution_id: ExecutionId,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="How long to wait, as 30s or 10m; seconds without a unit; for ever if left out."
        ),
    ] = None,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Wait until an execution has ended and show it.

    Exit code 1: it ended without a result, or not in time.
    """
    seconds = None if timeout is None else parse_duration(timeout, "--timeout")

    async def work(scheduler: PostgresScheduler) -> ExecutionRecord:
        return await scheduler.wait(execution_id, timeout=seconds)

    try:
        record = ask(database_url, embedded, schema, work, makes_data=False)
    except WaitTimedOut as error:
        raise Failed(one_line(str(error))) from None
    print_json(record) if as_json else print_execution(record)
    if record.status is not ExecutionStatus.COMPLETED:
        raise Failed(f"{one_line(execution_id)} {_ending(record)}")


def cancel(
    execution_id: ExecutionId,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Cancel an execution.

    Exit code 1: it had ended before.
    """

    async def work(scheduler: PostgresScheduler) -> bool:
        return await scheduler.cancel(execution_id)

    done = ask(database_url, embedded, schema, work, makes_data=False)
    _say_whether(done, "cancelled", execution_id, "had ended already; `zart status` shows how", as_json=as_json)


def release(
    execution_id: ExecutionId,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Take an execution out of quarantine: its run goes on where it stood.

    Exit code 1: it is not quarantined.
    """

    async def work(scheduler: PostgresScheduler) -> bool:
        return await scheduler.release(execution_id)

    done = ask(database_url, embedded, schema, work, makes_data=False)
    _say_whether(done, "released", execution_id, "is not quarantined; `zart status` shows how it is", as_json=as_json)


def _say_whether(done: bool, what: str, execution_id: str, why_not: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"execution_id": execution_id, what: done})
    elif done:
        print(f"{what} {one_line(execution_id)}")
    if not done:
        raise Failed(f"{one_line(execution_id)} {why_not}")


def list_(
    status: Annotated[ExecutionStatus | None, typer.Option(help="Only those with this status.")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this durable function.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only those of this queue.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="What this execution has scheduled.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="CURSOR", help="Go on after an earlier page's end.")] = None,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """List executions, page by page. Scheduled steps and children are listed by --parent, and not without it."""

    async def work(scheduler: PostgresScheduler) -> Page[ExecutionRecord]:
        if parent is not None:
            await scheduler.status(parent)  # a misspelt id is no execution without children
        return await scheduler.list_executions(
            status=status, task_name=task, queue=queue, parent=parent, limit=limit, after=after
        )

    page = ask(database_url, embedded, schema, work, makes_data=False)
    if as_json:
        print_json(page)
        return
    print_executions(page.items)
    if page.after is not None:
        print(f"there are more: --after {page.after}")


def history(
    execution_id: ExecutionId,
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Show an execution's journal: its steps, their results and their failed tries."""

    async def work(scheduler: PostgresScheduler) -> tuple[ExecutionRecord, list[StepRecord], bool]:
        record = await scheduler.status(execution_id)  # before the journal: when it has ended, that changes no more
        steps = await scheduler.history(execution_id)
        return record, steps, bool((await scheduler.list_executions(parent=execution_id, limit=1)).items)

    record, steps, has_children = ask(database_url, embedded, schema, work, makes_data=False)
    if as_json:
        print_json(steps)
        return
    print_steps(steps, ended=record.finished_at is not None)
    if record.status is ExecutionStatus.QUARANTINED:  # nothing in the journal tells that
        print(f"{one_line(execution_id)} {_ending(record)}")
    if has_children:  # the journal has the outcomes only
        print(f"what it has scheduled: zart list --parent {shlex.quote(one_line(execution_id))}")


def event(
    execution_id: ExecutionId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the event.")],
    data: Annotated[str, typer.Option("--data", metavar="JSON", help="Its payload.")] = "null",
    database_url: DatabaseUrl = None,
    embedded: Embedded = None,
    schema: Schema = SchemaDefault,
    as_json: AsJson = False,
) -> None:
    """Offer an event to an execution, which may wait for it already or later; the first of a name wins.

    Exit code 1: it was not the first, the wait for it had timed out, or the execution had ended.
    """
    payload = parse_json(data, "--data")

    async def work(scheduler: PostgresScheduler) -> EventAnswer:
        return await scheduler.offer_event(execution_id, name, payload)

    answer = ask(database_url, embedded, schema, work, makes_data=False)
    if as_json:
        print_json({"execution_id": execution_id, "answer": answer.value})
    match answer:
        case EventAnswer.ACCEPTED:
            if not as_json:
                print(f"{one_line(execution_id)} has the event {one_line(name)}")
        case EventAnswer.ALREADY_OFFERED:
            raise Failed(f"{one_line(execution_id)} has the event {one_line(name)} already, or waited too long for it")
        case EventAnswer.FINISHED:
            raise Failed(f"{one_line(execution_id)} had ended already; it takes no more events")


def _ending(record: ExecutionRecord) -> str:
    """How an execution ended that has no result, with what its error says."""
    return f"was {record.status}" if record.error is None else f"{record.status}: {error_text(record.error)}"
