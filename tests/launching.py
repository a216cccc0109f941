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
  with open("left_here", "w") as file:
    file.write("done")
  sys.exit(3 if "--fail" in sys.argv else 0)
'''
PYPROJECT = """[project.optional-dependencies]
cuda = ["greeting-cuda"]
tpu = []
dev = ["pytest"]
"""


def _wheel(folder, name, version, **modules):
  """Writes a wheel of one-file modules, and returns its path."""
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
  return path


def require(tree, version):
  """Has launch.sh install a version of greeting: 1.0 or 2.0."""
  (tree / "requirements.txt").write_text(
    f"--no-index\n--find-links wheels\ngreeting=={version}\n"
  )


def make_tree(root):
  """A tree that is not set up, with one experiment and wheels for it."""
  tree = root / "a tree"  # With a space, as in some home directories.
  for folder in ("experiments", "wheels", "bin"):
    (tree / folder).mkdir(parents=True)
  shutil.copy(REPOSITORY / "launch.sh", tree)
  (tree / "pyproject.toml").write_text(PYPROJECT)
  (tree / "experiments" / "__init__.py").touch()
  (tree / "experiments" / "hello.py").write_text(HELLO)
  for version in ("1.0", "2.0"):
    _wheel(
      tree / "wheels", "greeting", version, greeting=f"VERSION = {version}\n"
    )
  _wheel(tree / "wheels", "greeting_cuda", "1.0", greeting_cuda="")
  # A stand-in: the real one would come from an index.
  runner = 'import os, sys\nprint("tests", os.getcwd(), *sys.argv[1:])\n'
  _wheel(tree / "wheels", "pytest", "1.0", pytest=runner)
  require(tree, "1.0")
  nvidia_smi(tree / "bin", None)
  return tree


def write_script(path, text):
  """Writes an executable for sh."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(0o755)


def nvidia_smi(folder, answer):
  """Puts an nvidia-smi before the machine's own; None is one without a GPU."""
  text = "exit 9" if answer is None else f"printf '{answer}\\n'"
  write_script(folder / "nvidia-smi", text)
