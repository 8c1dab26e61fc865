"""Benchmarks: `python -m bench` compares servers on fresh images; `bench/iomap_cache.py` compares containers."""
