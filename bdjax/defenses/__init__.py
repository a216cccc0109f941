"""Defences on trained models, one published method a file."""
