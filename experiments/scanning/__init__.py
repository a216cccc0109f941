"""The parts of `experiments.scan`."""
