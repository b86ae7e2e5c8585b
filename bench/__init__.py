"""Benchmarks of zart: the engine against the raw floor of the same PostgreSQL, in one run. See README.md."""
