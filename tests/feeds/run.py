#!/usr/bin/env python3
"""Reads feeds that the real `shardwalker` binary wrote with readers that are not ours: pyarrow and duckdb.

A sandbox gives the table and its stream, moto's S3 server takes the objects. Every attribute type is written, with
numbers of 38 digits, binaries, sets and nulls; then the files must hold each record of the stream once, and add up
to what the table holds. Then the same with real items, a shape beside the feeds, and a writer (airports). In the end the
table is copied from an export in a bucket. Needs Python 3.10; everything else goes into a virtual environment under target/feeds.
Exit code: 0 all holds, 1 something does not, 2 the test could not run.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "feeds"
REQUIREMENTS = HERE / "requirements.txt"


def inside():
    return pathlib.Path(sys.prefix) == TARGET / "venv" and current()


def current():
    made_from = TARGET / "venv" / "made-from.txt"
    return made_from.exists() and made_from.read_text() == REQUIREMENTS.read_text()


def ensure():
    """Makes the environment if it is not there, and returns its Python."""
    directory = TARGET / "venv"
    python = directory / "bin" / "python"
    if not current():
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(pip, stdin=subprocess.DEVNULL, check=True)
        shutil.copy(REQUIREMENTS, directory / "made-from.txt")
    return python


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--binary", type=pathlib.Path, help="the binary (default: build target/debug/shardwalker)")
    parser.add_argument("--seed", type=int, default=1, help="of what is written to the airports (default: 1)")
    arguments = parser.parse_args(argv)
    if not inside():
        python = ensure()
        return subprocess.run([python, HERE / "run.py", *argv]).returncode
    if not arguments.binary:
        subprocess.run(["cargo", "build", "--quiet", "--bin", "shardwalker"], cwd=ROOT, check=True)
        arguments.binary = ROOT / "target" / "debug" / "shardwalker"
    import airports  # these need what is in the environment
    import readers

    readers.check(arguments.binary.resolve())
    airports.check(arguments.binary.resolve(), arguments.seed)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AssertionError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        raise
    except subprocess.CalledProcessError as error:
        print(f"feeds: {error}", file=sys.stderr)
        sys.exit(2)
