"""Small trees for launch.sh to set up, and machines for it to find."""

import pathlib
import shutil
import zipfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

HELLO = '''"""Greets, and says what it was given."""
import os, signal, sys, time
import greeting

if __name__ == "__main__":
  print("hello", greeting.VERSION, *sys.argv[1:])
  names = "JAX_PLATFORMS", "GLIBC_TUNABLES"
  print("environment", *map(os.environ.get, names))
  if "--wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("waiting", flush=True)
    time.sleep(60)
  open("left_here", "w").close()
  sys.exit(3 if "--fail" in sys.argv else 0)
'''
PYPROJECT = """[project.optional-dependencies]
cuda = ["greeting-cuda"]
tpu = []
dev = ["pytest"]
docs = ["sphinx"]
"""


def _wheel(folder, name, version, **modules):
  """Write a wheel of one-file modules."""
  info = f"{name}-{version}.dist-info"
  files = {f"{module}.py": text for module, text in modules.items()}
  files[f"{info}/METADATA"] = (
    f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
  )
  files[f"{info}/WHEEL"] = (
    "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
  )
  files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files)
  path = folder / f"{name}-{version}-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as wheel:
    for name, text in files.items():
      wheel.writestr(name, text)


def require(tree, requirement):
  """Make launch.sh install what the tree's wheels have: greeting 1.0, 2.0."""
  (tree / "requirements.txt").write_text(
    f"--no-index\n--find-links wheels\n{requirement}\n"
  )


# The benchmark of attacks: says so on both streams, and leaves its results.
CLEAN = '''"""Trains without a backdoor."""
import pathlib, signal, sys, time

if __name__ == "__main__":
  print("a table that nobody asked for")
  print("clean", *sys.argv[1:], file=sys.stderr, flush=True)
  if pathlib.Path("wait").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(60)
  path = pathlib.Path("runs/clean-digits/results.json")
  path.parent.mkdir(parents=True)
  path.touch()
'''
ATTACK = '''"""Attacks."""
import pathlib, sys

if __name__ == "__main__":
  # cli.main_attack("attack")
  found = pathlib.Path("runs/clean-digits/results.json").exists()
  print("attack", "with" if found else "without", "benchmark", *sys.argv[1:])
'''


def make_tree(root):
  """Make a tree that is not set up, with experiments and wheels for them."""
  tree = root / "a tree"  # With a space, as in some home directories.
  for folder in ("experiments", "wheels", "bin"):
    (tree / folder).mkdir(parents=True)
  shutil.copy(REPOSITORY / "launch.sh", tree)
  (tree / "pyproject.toml").write_text(PYPROJECT)
  (tree / "experiments" / "__init__.py").touch()
  (tree / "constraints.txt").touch()
  for name, text in (("hello", HELLO), ("clean", CLEAN), ("attack", ATTACK)):
    (tree / "experiments" / f"{name}.py").write_text(text)
  for version in ("1.0", "2.0"):
    _wheel(
      tree / "wheels", "greeting", version, greeting=f"VERSION = {version}\n"
    )
  _wheel(tree / "wheels", "greeting_cuda", "1.0", greeting_cuda="")
  # Stand-ins: the real ones would come from an index.
  for name in ("pytest", "sphinx"):
    runner = f'import os, sys\nprint("{name}", os.getcwd(), *sys.argv[1:])\n'
    _wheel(tree / "wheels", name, "1.0", **{name: runner})
  require(tree, "greeting==1.0")
  nvidia_smi(tree / "bin", None)
  write_script(tree / "bin" / "uv", "exit 1")  # The machine's own, hidden.
  return tree


def write_script(path, text):
  """Write an executable for sh."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(0o755)


def nvidia_smi(folder, answer):
  """Put an nvidia-smi before the machine's own; None: one without a GPU."""
  text = "exit 9" if answer is None else f"printf '{answer}\\n'"
  write_script(folder / "nvidia-smi", text)
