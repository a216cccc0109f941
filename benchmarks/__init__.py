"""Measured claims, each beside a peer: `python -m benchmarks.NAME`."""
