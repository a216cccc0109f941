"""Tests of bdjax.checkpoints: what was saved comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpointing import (
  assert_same,
  make_empty,
  make_state,
  save_steps,
  steps_on_disk,
)

from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError


def test_round_trip_is_exact(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(
      7, make_state(7), make_empty(7), {"seed": 3, 11: ("ban", 2)}, 0.5
    )
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(
      jax.eval_shape(lambda: make_state()), jax.eval_shape(make_empty)
    )
  assert restored.step == 7
  assert restored.meta == {"seed": 3, "11": ["ban", 2]}
  assert_same(restored.state, make_state(7))
  assert_same(restored.generator, make_empty(7))


def test_concrete_target_and_nothing_to_restore(tmp_path):
  with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.restore(make_state(), make_empty()) is None
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.save(2, make_state(2), {}, {}, 1.0)
    restored = checkpoints.restore(make_state(0), {})
  assert_same(restored.state, make_state(2))
  assert restored.generator == {}


def test_skips_what_the_target_leaves_out(tmp_path):
  save_steps(tmp_path, {3: 1.0})
  target = jax.eval_shape(lambda: make_state()).replace(opt_state=None)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.restore(target).state.step == 3
    restored = checkpoints.restore(target.replace(step=None))
    with pytest.raises(ValueError, match="opened read-only"):
      checkpoints.save(4, {}, {}, {}, 1.0)
  assert restored.generator is None
  assert (restored.state.step, restored.state.opt_state) == (None, None)
  assert_same(restored.state.params, make_state(3).params)
  assert_same(restored.state.batch_stats, make_state(3).batch_stats)


def test_read_only_leaves_the_directory_alone(tmp_path):
  save_steps(tmp_path, {3: 1.0})
  unfinished = tmp_path / "4.orbax-checkpoint-tmp"
  unfinished.mkdir()
  before = sorted(tmp_path.rglob("*"))
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.restore(make_state()).step == 3
  assert sorted(tmp_path.rglob("*")) == before
  with Checkpoints(tmp_path / "missing", read_only=True) as checkpoints:
    assert checkpoints.restore(make_state()) is None
  assert not (tmp_path / "missing").exists()


def test_restored_arrays_lie_where_the_target_says(tmp_path):
  devices = len(jax.devices())  # four virtual ones
  mesh = jax.make_mesh(
    (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  values = np.arange(3 * devices, dtype=np.float32)
  saved = {
    "whole": jax.device_put(values, whole),
    "cut": jax.device_put(values, cut),
  }
  free = jax.eval_shape(lambda: saved)
  turned = {
    "whole": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=cut),
    "cut": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=whole),
  }
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, saved, {}, {}, 1.0)
    for target, shardings in (
      (saved, {"whole": whole, "cut": cut}),
      (turned, {"whole": cut, "cut": whole}),
    ):
      restored = checkpoints.restore(target).state
      assert {name: x.sharding for name, x in restored.items()} == shardings
      assert_same(restored, saved)
    restored = checkpoints.restore(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), free)
    ).state
  assert all(x.devices() == {jax.devices()[0]} for x in restored.values())
  # Uncommitted, so that it may meet arrays of other devices.
  assert not any(x.committed for x in restored.values())


def test_keeps_latest_and_best_also_over_a_restart(tmp_path):
  save_steps(tmp_path, {0: 3.0, 1: 1.0, 2: 2.0, 3: 4.0, 4: 5.0})
  assert steps_on_disk(tmp_path) == [1, 3, 4]
  with Checkpoints(tmp_path) as checkpoints:
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, 1)
    checkpoints.save(5, make_state(5), {}, {}, float("nan"))
    checkpoints.save(6, make_state(6), {}, {}, 2.0)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 1)
    restored = checkpoints.restore(make_state(), step=checkpoints.best_step())
    assert_same(restored.state, make_state(1))
    with pytest.raises(
      UserError, match=r"step must be one of \[1, 5, 6\], .*got 2"
    ):
      checkpoints.restore(make_state(), step=2)
  assert steps_on_disk(tmp_path) == [1, 5, 6]


def test_save_copies_before_the_next_step_overwrites(tmp_path):
  """A donated buffer is written over while the save is under way."""
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  values = jnp.zeros((1000, 1000))
  with Checkpoints(tmp_path, keep_latest=100) as checkpoints:
    for step in range(6):
      checkpoints.save(step, {"x": values}, {}, {}, 1.0)
      for _ in range(10):
        values = grow(values)
    for step in range(6):
      restored = checkpoints.restore({"x": values}, step=step).state["x"]
      assert np.unique(restored).tolist() == [10.0 * step]


def test_saving_the_same_step_again_does_nothing(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {}, {}, 1.0)
    checkpoints.save(1, make_state(2), {}, {}, 1.0)
    assert_same(checkpoints.restore(make_state()).state, make_state(1))


@pytest.mark.parametrize(
  ("target", "named"),
  [
    (
      lambda: make_state(width=6),
      r"state/params/conv/kernel: float32\[3, 3, 1, 5\] there, "
      r"float32\[3, 3, 1, 6\] here",
    ),
    (
      lambda: make_state().replace(step=jnp.float32(0)),
      r"state/step: int32\[\] there, float32\[\] here",
    ),
    (
      lambda: make_state(tx=optax.sgd(0.1)),
      r"state/opt_state/1/0/trace/conv/kernel: .* there, absent here",
    ),
    (
      lambda: make_state().replace(batch_stats={"other": jnp.ones(2)}),
      r"state/batch_stats/other: absent there, float32\[2\] here",
    ),
  ],
)
def test_checkpoint_of_another_model(tmp_path, target, named):
  save_steps(tmp_path, {1: 1.0, 2: 1.0})
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(UserError, match=named) as caught:
      checkpoints.restore(target(), make_empty())
    with pytest.raises(UserError, match="generator/params/a: absent there"):
      checkpoints.restore(
        make_state(), make_empty().replace(params={"a": jnp.ones(2)})
      )
  assert "\n" not in str(caught.value)
  assert steps_on_disk(tmp_path) == [1, 2]
