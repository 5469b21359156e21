"""The run: an endpoint, the cases one after the other, and their verdicts."""

import datetime
import pathlib
import random
import signal
import subprocess
import sys
import time
import traceback

import endpoints
import load
import venvs
from cases import (
    active_active,
    exact_types,
    external_id,
    group_kinds,
    migration,
    missing_permission,
    outage,
    replicate,
    restart,
    three_workers,
    too_large,
    two_workers,
    verify,
)
from config import Settings
from proxies import Proxy
from service import Service

CASES = (
    replicate,
    exact_types,
    too_large,
    external_id,
    missing_permission,
    two_workers,
    three_workers,
    outage,
    restart,
    group_kinds,
    active_active,
    verify,
    migration,
)


class Context:
    """What a case works with."""

    def __init__(self, arguments, endpoint, directory, seed):
        self.endpoint = endpoint
        self.directory = directory
        self.seed = seed
        self.seconds = arguments.seconds
        self._binary = arguments.binary
        self.asked = arguments.items
        self._items = arguments.items or endpoint.items
        self._services = []
        self._groups = []
        self._proxies = []

    def say(self, text):
        """A line about what the case has seen."""
        print(f"     {text}", flush=True)

    def group(self, case, **permissions):
        """Fresh tables and permissions, removed after the case."""
        group = self.endpoint.group(case, **permissions)
        self._groups.append(group)
        return group

    def service(self, group, **options):
        """A worker on the group, not started yet; ended after the case. `options` are of `Settings`."""
        settings = Settings(**{"pace": self.endpoint.pace, **options})
        service = Service(self._binary, group, self.directory, settings)
        self._services.append(service)
        return service

    def proxy(self):
        """A proxy to the endpoint that can be cut; ended after the case."""
        proxy = Proxy(self.endpoint.source_account.endpoint)
        self._proxies.append(proxy)
        return proxy

    def load(self, group, items=None):
        """The application on the group's source, with at most so many items of the data."""
        limit = min((limit for limit in (items, self._items) if limit is not None), default=None)
        items, source = load.airports(limit)
        self.say(f"{source}, seed {self.seed}")
        return load.Load(group.source, items, self.seed)

    def end(self):
        """Ends the services and removes the tables."""
        for service in self._services:
            service.end()
        for proxy in self._proxies:
            proxy.cut()
        for group in self._groups:
            self.endpoint.discard(group)


def run(arguments):
    """Runs the cases and prints their verdicts; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    directory = venvs.TARGET / "runs" / datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    directory.mkdir(parents=True)
    cases = _chosen(arguments.cases)
    version = subprocess.run(
        [arguments.binary, "--version"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"endpoint suite: {version or arguments.binary} on {arguments.endpoint}, seed {seed}", flush=True)
    print(f"     logs and configs: {_shown(directory)}")
    endpoint = endpoints.KINDS[arguments.endpoint](directory, arguments.binary)
    passed, failed = 0, 0
    for case in cases:
        reason = endpoint.left_out(case.NEEDS)
        if reason:
            print(f"LEFT OUT {case.NAME}: {reason}", flush=True)
        elif _passes(case, arguments, endpoint, directory, seed):
            passed += 1
        else:
            failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _chosen(names):
    known = {case.NAME: case for case in CASES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SystemExit(f"endpoint suite: no case {', '.join(unknown)}; --list names them")
    return [known[name] for name in names] if names else CASES


def _passes(case, arguments, endpoint, directory, seed):
    own = directory / case.NAME
    own.mkdir()
    context = Context(arguments, endpoint, own, seed)
    print(f"CASE {case.NAME}", flush=True)
    begun = time.monotonic()
    try:
        case.run(context)
    except Exception as failure:  # a case's verdict; interrupts pass through
        frames = traceback.extract_tb(failure.__traceback__)
        location = [frame for frame in frames if frame.filename == case.__file__][-1]
        name = type(failure).__name__
        print(f"FAIL {case.NAME} ({time.monotonic() - begun:.1f} s): {name}: {failure}")
        print(
            f"     at {pathlib.Path(location.filename).name}:{location.lineno}; see {_shown(own)}", flush=True
        )
        return False
    finally:
        context.end()
    print(f"PASS {case.NAME} ({time.monotonic() - begun:.1f} s)", flush=True)
    return True


def _shown(path):
    return path.relative_to(venvs.ROOT)
