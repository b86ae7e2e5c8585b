"""PostgreSQL as postgres_exporter (0.15 or later, default collectors) tells of it: what slows ticks and claims."""

from __future__ import annotations

from grafana.model import (
    BAD_ABOVE_ZERO,
    BYTES,
    COUNT,
    PLAIN,
    RATE,
    SECONDS,
    SHARE,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    quantile,
    rate,
    series,
    stat,
)

_SERVER = 'job=~"$job", instance=~"$instance"'
_DATABASE = f'{_SERVER}, datname=~"$database"'
_TABLES = f'{_DATABASE}, relname=~"zart_.*"'
_CHANGES = ("inserted", "ins"), ("updated", "upd"), ("deleted", "del")

_JOB = Variable("job", "Job", "label_values(pg_up, job)")
_INSTANCE = Variable("instance", "Exporter", 'label_values(pg_up{job=~"$job"}, instance)')
_NAME = Variable(
    "database", "Database", 'label_values(pg_stat_database_xact_commit{job=~"$job", instance=~"$instance"}, datname)'
)

_HIT = f"sum({rate('pg_stat_database_blks_hit', _DATABASE)})"
_READ = f"sum({rate('pg_stat_database_blks_read', _DATABASE)})"
_LONGEST = f"max(pg_stat_activity_max_tx_duration{{{_DATABASE}}})"
_CONNECTIONS = f"sum(pg_stat_activity_count{{{_SERVER}}}) / sum(pg_settings_max_connections{{{_SERVER}}})"


def _by_table(metric: str) -> str:
    return f"sum by (schemaname, relname) ({metric}{{{_TABLES}}})"


def _rate_by_table(metric: str) -> str:
    return f"sum by (schemaname, relname) ({rate(metric, _TABLES)})"


_FIRST = (
    stat(
        "Exporter reaches it",
        "1 when postgres_exporter can query the server. 0: the server is down or does not let the exporter in; the "
        "fleet waits for it and needs nothing afterwards.",
        COUNT,
        f"min(pg_up{{{_SERVER}}})",
        ((None, "red"), (1, "green")),
    ),
    stat(
        "Connections",
        "Sessions, of `max_connections`. Near 100 % new ones are refused, and workers that restart cannot register. A "
        "runner takes 1 per worker and 3 of its own, and what `trx()` uses; see docs/operations.md.",
        SHARE,
        _CONNECTIONS,
        ((None, "green"), (0.8, "yellow"), (0.95, "red")),
    ),
    stat(
        "Commits",
        "Transactions committed each second. One tick of a worker is one. 0 while work is ready: ticks do not get "
        "through.",
        RATE,
        f"sum({rate('pg_stat_database_xact_commit', _DATABASE)})",
        PLAIN,
    ),
    stat(
        "Longest transaction",
        "The age of the oldest open transaction. While it is open its snapshot keeps dead rows of the queue alive, "
        "and claims become slow. Minutes: find it in `pg_stat_activity` by `xact_start` and end it "
        "(`pg_terminate_backend`).",
        SECONDS,
        _LONGEST,
        ((None, "green"), (60, "yellow"), (600, "red")),
    ),
    stat(
        "Cache hits",
        "Share of the pages read that were in PostgreSQL's memory. Below 99 % for long: the hot tables and indexes do "
        "not fit; raise `shared_buffers`, or give the machine more memory.",
        SHARE,
        f"{_HIT} / clamp_min({_HIT} + {_READ}, 1e-9)",
        ((None, "red"), (0.9, "yellow"), (0.99, "green")),
    ),
    stat(
        "Deadlocks",
        "Deadlocks in the last hour. zart's own statements make none, they skip rows that are locked. Some: "
        "transactions of the application, perhaps in `trx()` steps; PostgreSQL's log names the statements.",
        COUNT,
        f"sum(increase(pg_stat_database_deadlocks{{{_DATABASE}}}[1h]))",
        BAD_ABOVE_ZERO,
    ),
)

_LOAD_PANELS = (
    series(
        "Connections by state",
        "Sessions of the database. 'idle in transaction' holds locks and a snapshot and does nothing: an application "
        "that forgets to commit.",
        COUNT,
        (f"sum by (state) (pg_stat_activity_count{{{_DATABASE}}})", "{{state}}"),
        stacked=True,
    ),
    series(
        "Transactions",
        "Committed and rolled back, each second. Rollbacks that go on: statements fail; see PostgreSQL's log and "
        "'Database errors' of the fleet.",
        RATE,
        (f"sum({rate('pg_stat_database_xact_commit', _DATABASE)})", "committed"),
        (f"sum({rate('pg_stat_database_xact_rollback', _DATABASE)})", "rolled back"),
    ),
    series(
        "Longest transaction by state",
        "The age of the oldest open transaction. 'active' is a long query or a backup, 'idle in transaction' somebody "
        "who waits. Both hold an old snapshot: claims slow down until it is gone.",
        SECONDS,
        (f"max by (state) (pg_stat_activity_max_tx_duration{{{_DATABASE}}})", "{{state}}"),
    ),
    series(
        "Locks",
        "Locks held and awaited, by mode. AccessExclusiveLock that stays: a migration or a `vacuum full` holds up "
        "everything.",
        COUNT,
        (f"sum by (mode) (pg_locks_count{{{_DATABASE}}})", "{{mode}}"),
    ),
    series(
        "Tick duration, as the workers see it",
        "One group commit, there and back, of zart's fleets in this Prometheus. High here with everything else in "
        "order: the network, or the disk that WAL is written to.",
        SECONDS,
        *((quantile(q, "zart_tick_duration_seconds", ""), f"p{q * 100:.0f}") for q in (0.5, 0.99)),
    ),
    series(
        "Temporary files",
        "What queries wrote to disk because it did not fit `work_mem`. zart's own statements write none.",
        "Bps",
        (f"sum by (datname) ({rate('pg_stat_database_temp_bytes', _DATABASE)})", "{{datname}}"),
    ),
)

_TABLE_PANELS = (
    series(
        "Dead rows",
        "Rows of zart's tables that are gone and not yet vacuumed away. zart_queue goes up and down all the time. "
        "When it only rises, vacuum cannot remove them: an old transaction, a replication slot or a prepared "
        "transaction holds on to them.",
        COUNT,
        (_by_table("pg_stat_user_tables_n_dead_tup"), "{{schemaname}}.{{relname}}"),
    ),
    series(
        "Live rows",
        "Rows of zart's tables, as PostgreSQL estimates them. zart_queue has one per unfinished execution; "
        "zart_executions and zart_tasks grow with what is kept.",
        COUNT,
        (_by_table("pg_stat_user_tables_n_live_tup"), "{{schemaname}}.{{relname}}"),
    ),
    series(
        "Rows written",
        "Rows of zart's tables inserted, updated and deleted each second: the load that zart makes.",
        RATE,
        *((f"sum({rate(f'pg_stat_user_tables_n_tup_{short}', _TABLES)})", name) for name, short in _CHANGES),
    ),
    series(
        "Updates in place",
        "Share of updates that touched no index. zart_executions: one half and more. Near 0 there for long: an index "
        "on a column that changes, or dead rows that leave no room in its pages. zart_queue is near 0 always: a claim "
        "moves its row from one index to another.",
        SHARE,
        (
            f"{_rate_by_table('pg_stat_user_tables_n_tup_hot_upd')} / "
            f"({_rate_by_table('pg_stat_user_tables_n_tup_upd')} > 0)",
            "{{schemaname}}.{{relname}}",
        ),
    ),
    series(
        "Since the last vacuum",
        "How long ago a table was last vacuumed, by autovacuum or by hand. zart_queue under load: minutes. Hours "
        "there while dead rows rise: autovacuum is off, too slow (`autovacuum_vacuum_cost_limit`), or cancelled by "
        "locks.",
        SECONDS,
        (
            'time() - (max by (schemaname, relname) ({__name__=~"pg_stat_user_tables_last_(auto)?vacuum", '
            f"{_TABLES}}}) > 0)",
            "{{schemaname}}.{{relname}}",
        ),
    ),
    Panel(
        "table",
        "Tables",
        "zart's tables as they are. Sequential scans of a large one each second: an index is missing or invalid.",
        COUNT,
        (
            Query(_by_table("pg_stat_user_tables_n_live_tup"), "live rows"),
            Query(_by_table("pg_stat_user_tables_n_dead_tup"), "dead rows"),
            Query(_rate_by_table("pg_stat_user_tables_seq_scan"), "sequential scans", RATE),
            Query(_rate_by_table("pg_stat_user_tables_idx_scan"), "index scans", RATE),
        ),
        keys=("schemaname", "relname"),
    ),
)

_DISK_PANELS = (
    series(
        "WAL kept",
        "Size of the write-ahead log on disk. It moves around `max_wal_size`. When it only rises, a replication slot "
        "that nobody reads or an archive command that fails keeps it, and the disk fills up.",
        BYTES,
        (f"sum by (instance) (pg_wal_size_bytes{{{_SERVER}}})", "{{instance}}"),
    ),
    series(
        "Size",
        "Size of the database. It grows with the history that is kept.",
        BYTES,
        (f"sum by (datname) (pg_database_size_bytes{{{_DATABASE}}})", "{{datname}}"),
    ),
    series(
        "Pages from memory and from disk",
        "Pages that queries found in PostgreSQL's memory, and that they asked the system for. Reads that rise with "
        "the load: the working set does not fit.",
        RATE,
        (_HIT, "memory"),
        (_READ, "disk"),
    ),
)

DASHBOARD = Dashboard(
    "zart-postgresql",
    "zart: PostgreSQL",
    "The database under the fleet, by postgres_exporter 0.15 or later with its default collectors, connected to "
    "zart's database.",
    (_JOB, _INSTANCE, _NAME),
    (
        Row("Is it healthy, does it keep up, what is the oldest", _FIRST),
        Row("Load", _LOAD_PANELS),
        Row("zart's tables", _TABLE_PANELS),
        Row("Disk and memory", _DISK_PANELS),
    ),
)
