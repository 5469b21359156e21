"""The application: a seeded sequence of writes to the source, and what the table must hold after it.

The data is real where it is there (airports.jsonl: one item a line, in DynamoDB JSON), else generated.
"""

import json
import os
import random
import threading

import venvs
from compare import key_of

BATCH = 25
CITIES = ("Bay Springs", "Łódź", "São Paulo", "東京", "Zürich", "")


def airports(limit):
    """The items and a line that says where they are from."""
    path = os.environ.get("SHARDWALKER_AIRPORTS", venvs.ROOT.parent / "shared" / "data" / "airports.jsonl")
    try:
        with open(path, encoding="utf-8") as lines:
            items = [json.loads(line) for line in lines]
        return items[:limit], f"{min(limit or len(items), len(items))} of {len(items)} real items"
    except FileNotFoundError:
        items = [_generated(number) for number in range(limit or 3000)]
        return items, f"{len(items)} generated items (no airports.jsonl here)"


def _generated(number):
    return {
        "iata": {"S": f"G{number:05}"},
        "name": {"S": f"Field {number}"},
        "city": {"S": CITIES[number % len(CITIES)]},
        "location": {"M": {"lat": {"N": str(number % 180 - 90)}, "lon": {"N": f"{number % 360 - 180}.25"}}},
    }


class Load:
    """Writes to one table, in order, by one client; `expected` follows every write that was answered."""

    def __init__(self, table, items, seed):
        self._table = table.name
        self._client = table.client()
        self._random = random.Random(seed)
        self._waiting = list(items)
        self._random.shuffle(self._waiting)
        self._deleted = []
        self.total = len(items)
        self.expected = {}
        self.changes = 0

    def move(self, table):
        """Goes on at another table, which holds the same."""
        self._table = table.name
        self._client = table.client()

    def insert(self, number):
        """Puts up to `number` items that were not there before, in batches."""
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        for start in range(0, len(batch), BATCH):
            self._put_batch(batch[start : start + BATCH])

    def _put_batch(self, items):
        request = {self._table: [{"PutRequest": {"Item": item}} for item in items]}
        while request:
            request = self._client.batch_write_item(RequestItems=request).get("UnprocessedItems")
        for item in items:
            self.expected[key_of(item)] = item
        self.changes += len(items)

    def change(self, number):
        """Makes `number` random changes: updates, overwrites, deletes, and creations of deleted items."""
        for _ in range(number):
            kind = self._random.choices(("update", "overwrite", "delete", "create"), (5, 2, 2, 1))[0]
            if self._deleted and (kind == "create" or not self.expected):
                self._put(self._deleted.pop(self._random.randrange(len(self._deleted))))
                continue
            key = self._random.choice(list(self.expected))
            if kind == "delete":
                self._delete(key)
            elif kind == "overwrite":
                self._put({**self.expected[key], "visits": {"NULL": True}})
            else:
                self._update(key)

    def _put(self, item):
        self._client.put_item(TableName=self._table, Item=item)
        self.expected[key_of(item)] = item
        self.changes += 1

    def _delete(self, key):
        self._client.delete_item(TableName=self._table, Key={"iata": {"S": key}})
        self._deleted.append(self.expected.pop(key))
        self.changes += 1

    def _update(self, key):
        visit = {"N": str(self._random.randrange(10**12))}
        self._client.update_item(
            TableName=self._table,
            Key={"iata": {"S": key}},
            UpdateExpression="SET #visits = :visit, #log = list_append(if_not_exists(#log, :none), :visits)",
            ExpressionAttributeNames={"#visits": "visits", "#log": "log"},
            ExpressionAttributeValues={":visit": visit, ":none": {"L": []}, ":visits": {"L": [visit]}},
        )
        item = self.expected[key]
        log = item.get("log", {"L": []})["L"]
        self.expected[key] = {**item, "visits": visit, "log": {"L": [*log, visit]}}
        self.changes += 1

    def mix(self, items, changes):
        """Inserts up to `items` items, with about `changes` other changes spread between them."""
        items = min(items, len(self._waiting))
        batches = max(1, -(-items // BATCH))
        for _ in range(batches):
            self.insert(min(BATCH, items))
            items -= BATCH
            self.change(-(-changes // batches))


class Background:
    """A thread whose exception is not lost."""

    def __init__(self, work):
        self._failure = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._work()
        except BaseException as failure:  # raised again by the one who joins
            self._failure = failure

    def running(self):
        """Whether the work goes on."""
        return self._thread.is_alive()

    def join(self):
        """Waits for the end of the work and raises its exception, if there was one."""
        self._thread.join()
        if self._failure:
            raise self._failure
