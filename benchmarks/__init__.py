"""Benchmarks: ``python -m benchmarks`` runs the suite, each ``bench_*.py`` one subject."""
