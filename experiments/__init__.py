"""Experiments: one published method a script, `python -m experiments.NAME`."""
