"""Measure the kit: run a module with `python -m benchmarks.NAME`. `results/` holds every figure that the docs show."""
