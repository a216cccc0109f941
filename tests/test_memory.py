import jax
import pytest

from bdjax import memory
from bdjax.defenses import neural_cleanse, strip


@pytest.fixture
def gpu(monkeypatch):
  """As if on an accelerator; sets its memory in GiB."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

  def of(gib):
    monkeypatch.setattr(memory, "device_bytes", lambda: int(gib * 2**30))

  return of


def test_on_cpu_a_chunk_stays_near_the_cache():
  assert memory.images_at_once((28, 28, 1)) == 200
  assert strip.inputs_at_once(100, (28, 28, 1)) == 2
  assert neural_cleanse.searches_at_once((28, 28, 1), 32) == 1


def test_on_an_accelerator_it_follows_memory_and_image_size(gpu):
  gpu(16)
  # 4 GiB; 8 times 64 filters of 4 bytes are 2 KiB a pixel, 2 MiB an image.
  assert memory.images_at_once((32, 32, 3)) == 2048
  assert memory.images_at_once((64, 64, 3)) == 512
  assert memory.images_at_once((32, 32, 3), gradient=True) == 512
  assert strip.inputs_at_once(100, (32, 32, 3), devices=4) == 80
  assert neural_cleanse.searches_at_once((32, 32, 3), 32) == 16
  gpu(80)
  assert memory.images_at_once((64, 64, 3)) == 2560
  assert memory.images_at_once((28, 28, 1)) <= 16384


def test_there_is_always_one(gpu):
  gpu(0.1)
  assert memory.images_at_once((1024, 1024, 3)) == 1
  assert strip.inputs_at_once(100, (1024, 1024, 3), devices=2) == 2
  assert neural_cleanse.searches_at_once((1024, 1024, 3), 32) == 1


def test_a_device_that_does_not_say_has_some_memory(monkeypatch):
  assert memory.device_bytes() >= 2**30

  class Device:
    def memory_stats(self):
      return {"bytes_limit": 123}

  monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
  assert memory.device_bytes() == 123
