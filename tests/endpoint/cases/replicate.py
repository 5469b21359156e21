"""Two peers in other accounts follow real data through inserts, updates, deletes and two `kill -9`."""

import time

import accounts
import compare
from config import PEERS
from load import BATCH
from service import total
from waits import until

NAME = "replicate"
NEEDS = ()

CATCH_UP_LIMIT = 240
OK = 200
SHORT = 9


def run(context):
    group = context.group("replicate")
    load = context.load(group)
    service = context.service(group)
    started = time.time()
    service.start()
    service.wait_ready()
    assert service.get("/healthz")[0] == OK, f"/healthz: {service.get('/healthz')}"

    kill_at_the_start(context, group, load, service)
    service.start()
    kill_in_the_middle(context, group, load, service)
    service.start()
    load.mix(load.total, load.total // 8)

    held = converge(context, group, load, service)
    compare.check_stamps(held, started)
    context.say(
        f"{len(load.expected)} items identical in {len(held)} accounts, stamps well-formed and the same"
    )
    look_at_metrics(context, group, service)
    stop(context, group, service, held)


def kill_at_the_start(context, group, load, service):
    """Kills the service when the first items have arrived, and goes on writing without it."""

    def some_arrived():
        service.check_alive()
        load.insert(BATCH)
        count = compare.count(group.peers[0])
        return count > 0, count

    until("the first items at a peer", some_arrived, 60, pause=0)
    load.insert(load.total // 4)
    service.kill()
    counts = [compare.count(peer) for peer in group.peers]
    assert min(counts) < len(load.expected), "the kill came too late: nothing was left to catch up with"
    context.say(f"kill -9 with {counts} of {len(load.expected)} items at the peers")
    load.change(load.total // 8)


def kill_in_the_middle(context, group, load, service):
    """Kills the restarted service between two of many writes, and goes on writing without it."""
    service.wait_ready()
    load.mix(load.total // 4, load.total // 3)

    def at_work():
        service.check_alive()
        read = total(service.metrics(), "shardwalker_records_read_total")
        return read > 0, read

    until("the restarted service reads", at_work, 60)
    load.change(BATCH)
    service.kill()
    counts = [compare.count(peer) for peer in group.peers]
    context.say(
        f"kill -9 after {load.changes} changes; {counts} at the peers, {len(load.expected)} at the source"
    )
    load.change(load.total // 8)


def converge(context, group, load, service):
    """Waits until the peers hold what the application wrote, and the source, too."""
    begun = time.monotonic()
    told = compare.differences(load.expected, compare.read(group.source))
    assert not told, f"the endpoint itself lost writes of the source: {compare.summary(told)}"
    held = compare.converged(service, load.expected, group.peers, CATCH_UP_LIMIT)
    context.say(f"{load.changes} changes; caught up {time.monotonic() - begun:.1f} s after the last restart")
    return held


def look_at_metrics(context, group, service):
    """The metrics of the last process agree with what it did, once it has nothing left to do."""
    # A worker that could not renew its row in time abandons what it has read, and a lane that was let go reads again.
    again = "it stops writing" in service.output() or total(service.metrics(), "shardwalker_lanes_let_go_total") > 0
    if again:
        context.say("this machine was too slow for the lease, or a lane was let go: records were read more than once")

    def settled():
        samples = service.metrics()
        read = total(samples, "shardwalker_records_read_total")
        done = [total(samples, "shardwalker_changes_total", peer=peer) for peer in PEERS]
        at_work = total(samples, "shardwalker_in_flight")
        return read > 0 and (again or done == [read, read]) and at_work == 0, (read, done, at_work)

    read, _, _ = until("every record that was read has an outcome at every peer", settled, 20)
    samples = service.metrics()
    for metric in ("shardwalker_gaps_total", "shardwalker_dead_letters_total", "shardwalker_shards_stopped"):
        assert total(samples, metric) == 0, f"{metric} is {total(samples, metric)}"
    for peer in PEERS:
        assert total(samples, "shardwalker_lag_seconds_count", peer=peer) > 0, (
            f"no lag was measured for {peer}"
        )
    shards = accounts.open_shards(group.source)
    held = total(samples, "shardwalker_leases_held")
    assert held == shards, f"{shards} open shards, but {held:.0f} leases"
    assert total(samples, "process_resident_memory_bytes") > 0, "no metrics of the process"
    assert service.get("/healthz")[0] == OK, f"/healthz: {service.get('/healthz')}"
    megabytes = total(samples, "process_resident_memory_bytes") / 1e6
    context.say(f"/metrics: {read:.0f} records read by the last process, {megabytes:.0f} MB of memory")


def stop(context, group, service, held):
    """SIGTERM ends the service in good time; a further start finds nothing to do and changes nothing."""
    begun = time.monotonic()
    code = service.terminate()
    assert code == 0, f"exit code {code} after SIGTERM; the end of {service.log}:\n{service.tail()}"
    context.say(f"SIGTERM: exit code 0 after {time.monotonic() - begun:.1f} s")
    service.start()
    service.wait_ready()
    read = total(service.metrics(), "shardwalker_records_read_total")
    assert read == 0, f"{read:.0f} records were read again after a clean stop"
    assert service.terminate() == 0, f"exit code after the second SIGTERM; see {service.log}"
    for peer, before in zip(group.peers, held):
        assert compare.read(peer) == before, f"{peer.arn} changed though nothing was written"
    tell_nothing(context, group, service)


def tell_nothing(context, group, service):
    """The logs hold no secret, no values of items, and no colours, as they go to files."""
    logs = "".join(log.read_text() for log in service.logs)
    secrets = [value for name, value in group.service_environment.items() if "SECRET" in name]
    names = [item["name"]["S"] for item in compare.read(group.source).values()]
    names = [name for name in names if len(name) > SHORT]  # short ones may be words of the log
    for forbidden in (*secrets, *(role.external_id or "" for role in group.roles), *names, "\x1b"):
        assert not forbidden or forbidden not in logs, f"the logs hold {forbidden!r}"
    context.say(f"{len(logs.splitlines())} log lines in {len(service.logs)} lives, without secrets or values")
