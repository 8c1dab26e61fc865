"""Measurements. `make bench` (python -m bench) compares mounts; the other files measure single parts."""
