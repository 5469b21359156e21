"""Reads a Grafana dashboard and ServiceMonitors with the models of their fields, and refuses what these do not know.

    python models.py dashboard FILE
    python models.py servicemonitor FILE
"""

import json
import sys

import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(given, read, path=""):
    """What was given and is not in what was read, by its path: a model drops what it does not know."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from lost(value, read[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read)):
            yield from lost(one, other, f"{path}[{index}]")
    elif given != read:
        yield f"{path}: {given!r} was read as {read!r}"


def main():
    kind, path = sys.argv[1:]
    with open(path) as file:
        given = json.load(file) if kind == "dashboard" else yaml.safe_load(file)
    if kind == "dashboard":
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    else:
        read = json.loads(ServiceMonitor.model_validate(given).model_dump_json(by_alias=True, exclude_none=True))
    unknown = list(lost(given, read))
    if unknown:
        sys.exit(f"{path}: not as the model has it: {unknown[:20]}")


if __name__ == "__main__":
    main()
