"""Three members, each written by boto3 at once, workers killed again and again; then all are equal and quiet."""

import random
import time

import compare
import load
from service import total
from waits import until

NAME = "active_active"
NEEDS = ()

KEYS = 200
KILL_EVERY = 4
QUIET = 10


def run(context):
    group = context.group("active", mesh=True)
    members = group.members
    workers = [context.service(group, worker=name) for name in ("first", "second")]
    for worker in workers:
        worker.start()
        worker.wait_ready()

    stop = time.monotonic() + context.seconds
    writers = [Writer(member, context.seed + number) for number, member in enumerate(members)]
    threads = [load.Background(lambda writer=writer: writer.run(stop)) for writer in writers]
    chance, kills = random.Random(context.seed), 0
    while any(thread.running() for thread in threads):
        time.sleep(KILL_EVERY)  # what is tested is that workers die in the middle of the work
        worker = chance.choice(workers)
        worker.kill()
        kills += 1
        if kills == 3:
            context.endpoint.disturb(group)
        worker.start()
    for thread in threads:
        thread.join()
    wrote = sum(writer.writes for writer in writers)
    context.say(f"{wrote} writes to {KEYS} keys at three members in {context.seconds} s, {kills} kills")

    until("the members are equal", lambda: equal(members), 180, pause=1)
    before, requests = until("nobody writes any more", lambda: quiet(members, workers), 120)
    time.sleep(QUIET)  # what is tested is that nothing happens
    assert snapshot(members) == before, f"items changed in {QUIET} quiet seconds"
    sent = writes(workers) - requests
    assert sent == 0, f"{sent:.0f} requests to members in {QUIET} quiet seconds"
    same, seen = equal(members)
    assert same, seen
    written = set().union(*(writer.contents for writer in writers))
    for key, item in (pair for member in members for pair in compare.read(member).items()):
        assert item["by"]["S"] in written, f"{key} has a content that nobody wrote: {item}"
        stamp = item.get(compare.STAMP, {}).get("S", "")
        assert ".d." not in stamp, f"{key} is marked as being deleted"
    context.say(f"all equal, {len(compare.read(members[0]))} items left; nothing was written in {QUIET} quiet seconds")
    for worker in workers:
        worker.wait_ready()
        assert worker.terminate() == 0, f"exit code after SIGTERM; see {worker.log}"


class Writer:
    """The application of one member: all kinds of writes to the same few keys as the others."""

    def __init__(self, member, seed):
        self._member, self._client = member, member.client()
        self._random = random.Random(seed)
        self.writes = 0
        self.contents = set()

    def run(self, stop):
        """Writes until the time has come."""
        acts = [self._put, self._put, self._update, self._update, self._delete, self._put_back]
        while time.monotonic() < stop:
            key = f"k{self._random.randrange(KEYS)}"
            self._random.choice(acts)(key)
            self.writes += 1

    def _content(self):
        content = f"{self._member.account.number}-{self.writes}"
        self.contents.add(content)
        return {"S": content}

    def _put(self, key):
        item = {"iata": {"S": key}, "by": self._content(), "n": {"N": str(self.writes)}}
        self._client.put_item(TableName=self._member.name, Item=item)

    def _update(self, key):
        self._client.update_item(
            TableName=self._member.name,
            Key={"iata": {"S": key}},
            UpdateExpression="SET #b = :b",
            ExpressionAttributeNames={"#b": "by"},
            ExpressionAttributeValues={":b": self._content()},
        )

    def _delete(self, key):
        self._client.delete_item(TableName=self._member.name, Key={"iata": {"S": key}})

    def _put_back(self, key):
        """Reads the whole item, with our attribute, and puts it back with another content."""
        answer = self._client.get_item(TableName=self._member.name, Key={"iata": {"S": key}})
        item = {"iata": {"S": key}, **answer.get("Item", {}), "by": self._content()}
        self._client.put_item(TableName=self._member.name, Item=item)


def equal(members):
    """Whether all members hold the same items, and the first differences."""
    first, *others = [compare.read(member) for member in members]
    for member, found in zip(members[1:], others):
        told = compare.differences(first, found)
        if told:
            return False, f"{member.arn}: {compare.summary(told)}"
    return True, None


def snapshot(members):
    """What all members hold, with stamps."""
    held = [compare.read(member) for member in members]
    return [{key: compare.exact_item(item) for key, item in items.items()} for items in held]


def writes(workers):
    """The requests that the workers have sent to members."""
    return sum(total(worker.metrics(), "shardwalker_peer_requests_total") for worker in workers)


def quiet(members, workers):
    """Whether nothing was written for some seconds; gives what is held and how much was sent then."""
    for worker in workers:
        worker.wait_ready()
    before, sent = snapshot(members), writes(workers)
    time.sleep(3)
    same = snapshot(members) == before and writes(workers) == sent
    return same, (before, sent) if same else f"{writes(workers) - sent:.0f} requests in 3 s"
