import jax
import numpy as np

from bdjax.runs.load import defense_keys
from bdjax.runs.setup import make_keys


def test_no_stream_is_shared():
  # fold_in(key, i) is the i-th key of split(key): a stream that were another
  # one, or came from another by a step or two, would show here.
  seen = []
  for seed in (0, 1):
    for key in make_keys(seed):
      family = [key, *jax.random.split(key, 8)]
      family += [k for child in family[1:] for k in jax.random.split(child, 8)]
      seen += [tuple(np.asarray(jax.random.key_data(k))) for k in family]
  assert len(set(seen)) == len(seen)


def test_randomness_of_defenses_is_apart_from_the_runs_and_from_other_runs():
  keys = [*defense_keys(0, 0), *defense_keys(0, 1), *defense_keys(1, 0)]
  keys += [*make_keys(0), *make_keys(1)]
  seen = {jax.random.key_data(key).tobytes() for key in keys}
  assert len(seen) == len(keys) == 18
