"""Dynamic backdoor attacks on image classifiers, and defences, in JAX."""

__version__ = "0.2.0"
