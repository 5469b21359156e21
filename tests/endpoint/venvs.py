"""Virtual environments under target/endpoint, one for each requirements file.

A finished environment holds a copy of the requirements it was made from; when they change, it is made anew.
"""

import pathlib
import shutil
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "endpoint"


def _directory(name):
    return TARGET / f"venv-{name}"


def inside(name):
    """Whether this very process runs in the environment, and the environment is as the requirements say."""
    return pathlib.Path(sys.prefix) == _directory(name) and _current(name)


def _requirements(name):
    return HERE / f"requirements-{name}.txt"


def _current(name):
    made_from = _directory(name) / "made-from.txt"
    return made_from.exists() and made_from.read_text() == _requirements(name).read_text()


def ensure(name):
    """Makes the environment if it is not there, and returns its Python."""
    directory = _directory(name)
    python = directory / "bin" / "python"
    if _current(name):
        return python
    print(f"endpoint suite: making {directory.relative_to(ROOT)}", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=True)
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
            _requirements(name),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
    )
    shutil.copy(_requirements(name), directory / "made-from.txt")
    return python
