"""A table is moved while it is written: backfill, comparison, cutover, writes at the new side, and back again."""

import json
import random
import threading

import accounts
import compare
import load
from config import Pace
from endpoints import FROM_A_TIME
from waits import until

NAME = "migration"
NEEDS = (FROM_A_TIME,)

ITEMS = 600  # in CI; --items 100000 for the whole
LARGEST = 60_000
CHANGES = 20  # between two looks at whether to stop
CATCH_UP_LIMIT = 120
NEAR = 10  # seconds; a difference counts after 30
SAID = 2000  # characters of what a command said that are shown when it fails
# For each page of a scan ministack sorts and hashes the whole table, a second or so with 100,000 items, and serves nobody
# meanwhile; several scans wait for each other.
MANY = 10_000
SLOW = Pace(lease="90s", request_timeout="30s")


def run(context):
    actions = [*accounts.PEER_WRITES, "dynamodb:Scan"]
    group = context.group("migration", peer_actions=actions, mesh=True)
    chance = random.Random(context.seed)
    items = [item(number, chance) for number in range(context.asked or ITEMS)]
    context.say(f"{len(items)} items of mixed sizes, seed {context.seed}")
    writes = load.Load(group.source, items, context.seed)
    writes.insert(len(items))
    pace = SLOW if len(items) >= MANY else context.endpoint.pace
    service = context.service(group, migration=True, pace=pace)
    service.start()
    service.wait_ready()
    target = group.peers[0]

    writer = Writer(writes)
    context.say(succeeds(service, "backfill", "airports").splitlines()[-1].strip())
    context.say(compares(service, "airports", "peer-1", len(items)))
    move(context, service, writer, [], target)
    agree(service, writes, group.source, target)
    context.say(f"moved after {writes.changes} changes; both sides are the same")

    writer = Writer(writes)
    until("it is written at the new side", writer.wrote, 60)
    context.say(compares(service, "airports/back", "source", len(items)))
    move(context, service, writer, ["--undo"], group.source)
    agree(service, writes, group.source, target)

    writer = Writer(writes)
    until("it is written at the old side again", writer.wrote, 60)
    context.say(compares(service, "airports", "peer-1", len(items)))
    writer.stop()
    agree(service, writes, group.source, target)
    context.say(f"and back after {writes.changes} changes; both sides are the same")
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"


class Writer:
    """An application that changes items all the while."""

    def __init__(self, writes):
        self._writes = writes
        self._before = writes.changes
        self._stop = threading.Event()
        self._thread = load.Background(self._run)

    def _run(self):
        while not self._stop.is_set():
            self._writes.change(CHANGES)

    def wrote(self):
        """Whether it has written a good deal."""
        changes = self._writes.changes - self._before
        return changes > 10 * CHANGES, changes

    def stop(self):
        """Waits for its last write."""
        self._stop.set()
        self._thread.join()


def move(context, service, writer, arguments, side):
    """Moves the writers: the statement is printed, they are stopped, and go on at the other side."""
    code, said = service.command("cutover", "airports", *arguments)
    assert code == 1 and "ShardwalkerCutoverairports" in said, f"cutover: exit code {code}: {said}"
    writer.stop()
    said = succeeds(service, "cutover", "airports", "--writers-stopped", *arguments)
    assert side.arn in said, said
    context.say(said.splitlines()[-1])
    writer._writes.move(side)


def succeeds(service, name, *arguments):
    """Runs a command that must end well, and returns what it printed."""
    code, said = service.command(name, *arguments, limit=7200)
    assert code == 0, f"{name} {' '.join(arguments)}: exit code {code}: ...{said[-SAID:]}"
    return said.strip()


def compares(service, route, peer, patience):
    """Finds no difference; returns what `verify` said in the end. Before it, what is written must be at the other side long
    before it would count as a difference: what was written before a backfill or a move is repeated for a while."""

    def near():
        service.check_alive()
        _, said = service.command("status", "--json")
        lag = json.loads(said[said.index("{") :])["routes"][route]["peers"][peer]["lag_seconds"]
        return lag < NEAR, f"{lag} s behind"

    until(f"{route} is near", near, limit=max(patience, CATCH_UP_LIMIT))
    return succeeds(service, "verify", route).splitlines()[-1].strip()


def agree(service, writes, *tables):
    """Both sides hold what the application wrote, by boto3's word."""
    compare.converged(service, writes.expected, tables, CATCH_UP_LIMIT)


def item(number, chance):
    """One of mixed sizes: most are small."""
    size = LARGEST if number % 300 == 0 else chance.choice((10, 10, 100, 100, 100, 1000, 1000, 4000))
    return {
        "iata": {"S": f"M{number:06}"},
        "name": {"S": f"Item {number}"},
        "city": {"S": "x" * size},
        "counts": {"NS": ["-1", "0.5", str(number)]},
    }
