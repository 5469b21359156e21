"""What boto3 puts in disorder at a peer is listed by `verify`, mended by `--repair`, and equal again by boto3's word."""

import json

import accounts
import compare
from endpoints import FROM_A_TIME

NAME = "verify"
NEEDS = (FROM_A_TIME,)

ITEMS = 300
CATCH_UP_LIMIT = 60


def run(context):
    actions = [*accounts.PEER_WRITES, "dynamodb:Scan"]
    group = context.group("verify", peer_actions=actions, mesh=True)
    writes = context.load(group, ITEMS)
    service = context.service(group, migration=True)
    service.start()
    service.wait_ready()
    writes.insert(writes.total)
    source, peer = group.source, group.peers[0]
    (held,) = compare.converged(service, writes.expected, [peer], CATCH_UP_LIMIT)
    found(service, 0, {})

    planted = plant(writes, service, peer, held)
    told = compare.differences(compare.read(source), compare.read(peer))
    assert len(told) == len(planted), f"boto3 finds {compare.summary(told)}"
    found(service, 1, planted)
    found(service, 0, planted, "--repair")
    agree(writes, source, peer)
    found(service, 0, {})
    context.say(f"{len(planted)} items that were missing, different or too many: listed, mended, equal by boto3")

    # What the application of the peer wrote is nobody's to replace, unless that is said.
    foreign = {"iata": {"S": "of-the-peer"}, "name": {"S": "ours"}}
    peer.client().put_item(TableName=peer.name, Item=foreign)
    found(service, 1, {"of-the-peer": "foreign"}, "--repair")
    assert compare.read(peer)["of-the-peer"] == foreign, "it is not as it was put"
    found(service, 0, {"of-the-peer": "foreign"}, "--repair", "--prefer", "source")
    agree(writes, source, peer)
    context.say("an item that was put at the peer stayed until the source was preferred")
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"


def plant(writes, service, peer, held):
    """Deletes items at the peer, and puts others there as late writes would: as they were before they were changed or
    deleted at the source. Returns the kind of difference by key."""
    missing, different, extra = (sorted(held)[part::3][:7] for part in range(3))
    for key in different:
        writes._update(key)
    for key in extra:
        writes._delete(key)
    compare.converged(service, writes.expected, [peer], CATCH_UP_LIMIT)
    client = peer.client()
    for key in missing:
        client.delete_item(TableName=peer.name, Key={"iata": {"S": key}})
    for key in [*different, *extra]:
        client.put_item(TableName=peer.name, Item=held[key])
    kinds = {"missing": missing, "different": different, "extra": extra}
    return {key: kind for kind, keys in kinds.items() for key in keys}


def found(service, expected_code, expected, *arguments):
    """Compares; the exit code, and the kind of each difference that is listed, must be these."""
    code, said = service.command("verify", "airports", "--settle", "2s", *arguments)
    listed = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
    kinds = {line["key"]["iata"]["S"]: line["kind"] for line in listed if "kind" in line}
    assert code == expected_code, f"verify {' '.join(arguments)}: exit code {code}: {said}"
    assert kinds == expected, f"verify {' '.join(arguments)} lists {kinds}, not {expected}: {said}"


def agree(writes, *tables):
    """The tables hold what the application wrote, now and by boto3's word."""
    for table in tables:
        told = compare.differences(writes.expected, compare.read(table))
        assert not told, f"{table.arn}: {compare.summary(told)}"
