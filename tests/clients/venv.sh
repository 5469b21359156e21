#!/bin/sh
# Makes the virtual environment of the client tests, or leaves it as it is when it already holds the pinned
# versions. Prints its path. Everything else goes to stderr.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?usage: venv.sh DIRECTORY}
wanted=$here/requirements.txt
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted" >&2
    # Last, so that an interrupted installation is made again.
    cp "$wanted" "$venv/requirements.txt"
fi
echo "$venv"
