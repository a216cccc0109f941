import os
import types

import jax
import pytest

from bdjax import batch_sizes
from bdjax.batch_sizes import max_batch_size


@pytest.fixture(params=["gpu", "tpu"])
def accelerator(request, monkeypatch):
  """Pretend to run on an accelerator; the value sets its memory in GiB."""
  monkeypatch.setattr(jax, "default_backend", lambda: request.param)

  def set_memory(gib):
    device = types.SimpleNamespace(
      memory_stats=lambda: {"bytes_limit": int(gib * 2**30)}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])

  return set_memory


def test_on_cpu_a_batch_stays_near_the_cache():
  assert jax.default_backend() == "cpu"
  assert max_batch_size((28, 28, 1)) == 200
  assert max_batch_size((64, 64, 3), gradient=True) == 200


def test_on_an_accelerator_it_follows_memory_and_image_size(accelerator):
  accelerator(16)
  # 4 GiB; 8 times 64 filters of 4 bytes are 2 KiB a pixel, 2 MiB an image.
  assert max_batch_size((32, 32, 3)) == 2048
  assert max_batch_size((64, 64, 3)) == 512
  assert max_batch_size((16, 64, 1)) == 2048  # width and height differ
  assert max_batch_size((32, 32, 3), gradient=True) == 512
  accelerator(80)
  assert max_batch_size((64, 64, 3)) == 2560


def test_it_is_at_least_1_and_at_most_what_keeps_a_device_busy(accelerator):
  accelerator(0.1)
  assert max_batch_size((1024, 1024, 3)) == 1
  accelerator(1000)
  assert max_batch_size((28, 28, 1)) == 16384


def test_memory_of_a_device_that_has_no_limit_is_the_machines(monkeypatch):
  assert batch_sizes.device_bytes() >= 2**30
  for stats in (None, {}, {"bytes_in_use": 5}):
    device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
    monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
    monkeypatch.setattr(os, "sysconf", lambda name: len(name))
    # SC_PAGE_SIZE has 12 letters, SC_PHYS_PAGES 13.
    assert batch_sizes.device_bytes() == 12 * 13


def test_memory_is_guessed_where_the_system_does_not_tell(monkeypatch):
  monkeypatch.delattr(os, "sysconf")
  assert batch_sizes.device_bytes() == 8 * 2**30
