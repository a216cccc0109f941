"""Measured claims, each beside a peer: `python -m benchmarks.NAME`.

`python -m benchmarks.all` runs them all and writes `RESULTS.md`. A script
times ours and its peers in turns in one process (`timing.py`), prints a table
for people and a line of JSON, and says how near ours comes to what the machine
can do (`roofline.py`). `--help` names its flags; all have `--models`,
`--width`, `--repeats`, `--bf16` and `--tiny`, which only shows that it runs.

    training_step    a training step, beside torch and plain JAX
    convolution      our convolution and its gradients, beside lax's
    strip            STRIP, beside ART's and a loop in torch
    neural_cleanse   the searches of all classes, beside a loop in torch
    pruning_curve    the whole curve, beside one evaluation a point
    cban_step        a step of cBaN, beside the authors' way
    augmentation     what augmentation and poisoning add to an epoch
    startup          seconds to the first training step
    scaling          how costs grow with images, classes, overlays, channels
    defenses         ours batched, beside ours one thing at a time
    ceiling          a large matrix product and a large copy

The peers in torch are in `pytorch/`, those in plain JAX in `plain/`. torch and
adversarial-robustness-toolbox are no requirements: what is not installed is
left out, which a line says. JAX and torch run on the GPU where they see one;
`pytorch/device.py` chooses for torch.
"""

import os

# JAX takes three quarters of a GPU's memory when it starts; torch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
