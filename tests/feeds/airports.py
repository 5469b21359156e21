"""Real items on their way to a partner and to a data platform, while somebody writes.

The airports table goes through a shape into a second table and into two feeds, and as it is into two more feeds, each time
one of Parquet and one of JSON lines, by a backfill and by changes. At the end duckdb adds the files up to the last record
of each key, and boto3 reads the source and the second table; what the shape should have made is computed here, by other
means.
"""

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import random
import tempfile
import threading
from decimal import Decimal

import boto3
import duckdb
from boto3.dynamodb.types import TypeDeserializer
from readers import REGION, run, running, until

DATA = pathlib.Path("data/airports.jsonl")
STATE = "WA"
KEY = "a key of sixteen bytes or more"
STAMP = "shardwalker"

CONFIG = """
endpoint = "{sandbox}"
[state]
table = "shardwalker-state"
region = "{region}"
[admin]
listen = "off"
[[member]]
name = "airports"
table = "{source}"
[[member]]
name = "partner"
table = "{target}"
[[feed]]
name = "lake"
url = "file://{directory}/lake"
format = "parquet"
roll_age = "2s"
columns = {{ iata = "string", name = "string", city = "string", state = "string", country = "string", \
location = "json" }}
[[feed]]
name = "lines"
url = "file://{directory}/lines"
format = "dynamodb-json"
roll_age = "2s"
[[feed]]
name = "part"
url = "file://{directory}/part"
format = "parquet"
roll_age = "2s"
[[feed]]
name = "part-lines"
url = "file://{directory}/part-lines"
format = "dynamodb-json"
images = "both"
roll_age = "2s"
[[route]]
name = "shaped"
from = "airports"
to = ["partner", "part", "part-lines"]
[route.shape]
filter = 'item.state == "{state}"'
include = ["name", "city", "state"]
mask = {{ name = "hash" }}
mask_key_env = "PII_KEY"
[[route]]
name = "out"
from = "airports"
to = ["lake", "lines"]
"""


def data():
    """The airports, which lie beside the project; None where they do not."""
    for root in pathlib.Path(__file__).resolve().parents:
        found = root / "shared" / DATA
        if found.exists():
            return found
    return None


class Writer:
    """Changes names and states, deletes and creates, until it is told to stop."""

    def __init__(self, table, keys, seed):
        self.table, self.keys, self.random = table, keys, random.Random(seed)
        self.writes, self.failure, self.over = 0, None, threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self):
        try:
            while not self.over.is_set():
                self.write()
                self.writes += 1
        except Exception as error:  # told when it is stopped
            self.failure = error

    def write(self):
        key = {"iata": self.random.choice(self.keys)}
        what = self.random.random()
        if what < 0.1:
            self.table.delete_item(Key=key)
        elif what < 0.2:
            number = self.random.randrange(10**20)
            self.table.put_item(Item={
                **key, "name": f"Field {self.writes}", "state": self.random.choice([STATE, "OR"]), "city": "Nowhere",
                "country": "USA", "elevation": Decimal(number).scaleb(-3), "tags": {"new", str(self.writes)},
            })
        else:
            self.table.update_item(
                Key=key, UpdateExpression="SET #n = :n, #s = :s, city = if_not_exists(city, :c)",
                ExpressionAttributeNames={"#n": "name", "#s": "state"},
                ExpressionAttributeValues={
                    ":n": f"Airport {self.writes}", ":s": self.random.choice([STATE, "OR", "CA"]), ":c": "None",
                },
            )

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        if self.failure:
            raise self.failure


def scan(table):
    items, start = {}, {}
    while True:
        page = table.scan(ConsistentRead=True, **start)
        items.update({item["iata"]: item for item in page["Items"]})
        if "LastEvaluatedKey" not in page:
            return items
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


def typed(item):
    """An item of DynamoDB JSON as boto3 has it."""
    read = TypeDeserializer().deserialize
    return {name: read(value) for name, value in item.items()}


def places(directory, route, feed, end):
    """The files of a feed's changes and of its snapshot."""
    root = f"{directory}/{feed}"
    return [f"{root}/{route}/{feed}/dt=*/hour=*/*.{end}", f"{root}/{route}.snapshot/{feed}/run=1/*.{end}"]


def of_parquet(places):
    """The last record of each key, put together again from the columns and `_rest`."""
    rows = duckdb.execute(
        "select * exclude (_created) from read_parquet(?, union_by_name = true, hive_partitioning = false) "
        "qualify row_number() over (partition by _key order by _version desc) = 1",
        [places],
    )
    names = [column[0] for column in rows.description]
    items = {}
    for row in rows.fetchall():
        row = dict(zip(names, row))
        if row["_event"] == "REMOVE":
            continue
        item = {name: value for name, value in row.items() if not name.startswith("_") and value is not None}
        if "location" in item:
            item["location"] = json.loads(item["location"], parse_float=Decimal)
        items[item["iata"]] = {**item, **typed(json.loads(row["_rest"] or "{}"))}
    return items


def of_lines(places):
    shape = {"sequence": "VARCHAR", "version": "VARCHAR", "event": "VARCHAR", "key": "JSON", "new": "JSON"}
    rows = duckdb.execute(
        "select event, new from read_json(?, format='newline_delimited', columns=?) "
        "qualify row_number() over (partition by key order by version desc) = 1",
        [places, shape],
    ).fetchall()
    items = [typed(json.loads(new)) for event, new in rows if event != "REMOVE"]
    return {item["iata"]: item for item in items}


def enters_and_leaves(places):
    """The events of each key, in order, must be those of items that come and go; returns how often one left the shape.

    Before a key's first record the item may have been in the table already, by the snapshot alone.
    """
    columns = {"sequence": "VARCHAR", "version": "VARCHAR", "event": "VARCHAR", "key": "JSON", "old": "JSON", "new": "JSON"}
    rows = duckdb.execute(
        "select event, key, old, new from read_json(?, format='newline_delimited', columns=?) order by version",
        [places, columns],
    ).fetchall()
    there, left = {}, 0
    for event, key, old, new in rows:
        before = there.get(key)
        assert before is None or before == old, f"{key}: {event} of {old}, after {before}"
        assert (event == "INSERT") == (old is None) and (event == "REMOVE") == (new is None), f"{key}: {event}"
        left += event == "REMOVE"
        there[key] = new
    return left


def shaped(items):
    def one(item):
        name = hmac.new(KEY.encode(), item["name"].encode(), hashlib.sha256).hexdigest()
        return {"iata": item["iata"], "name": name, "city": item["city"], "state": item["state"]}

    return {key: one(item) for key, item in items.items() if item["state"] == STATE}


def same(what, found, wanted):
    differ = [key for key in {*found, *wanted} if found.get(key) != wanted.get(key)]
    example = differ and (found.get(differ[0]), wanted.get(differ[0]))
    assert not differ, f"{what}: {len(differ)} of {len(wanted)} keys differ, such as {differ[0]}: {example}"


def check(binary, seed):
    source = data()
    if not source:
        print("airports: left out, there are no airports beside the project")
        return
    items = [typed(json.loads(line)) for line in source.read_text().splitlines()]
    with tempfile.TemporaryDirectory(prefix="feeds-") as name, contextlib.ExitStack() as stack:
        directory = pathlib.Path(name)
        quiet = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
        sandbox = stack.enter_context(
            running([binary, "sandbox", "--listen", "127.0.0.1:0", "--json"], directory / "sandbox.log", quiet)
        )
        ready = json.loads(sandbox.stdout.readline())
        user = ready["accounts"][0]["users"][0]
        keys = {"aws_access_key_id": user["access_key_id"], "aws_secret_access_key": user["secret_access_key"]}
        dynamodb = boto3.resource("dynamodb", region_name=REGION, endpoint_url=ready["endpoint"], **keys)
        tables = []
        for table in ("airports", "partner"):
            tables.append(dynamodb.create_table(
                TableName=table, BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": "iata", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "iata", "AttributeType": "S"}],
                StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
            ))
            tables[-1].wait_until_exists()
        airports, partner = tables
        with airports.batch_writer() as batch:
            for item in items:
                batch.put_item(Item=item)
        config = directory / "shardwalker.toml"
        config.write_text(CONFIG.format(
            sandbox=ready["endpoint"], region=REGION, source=airports.table_arn, target=partner.table_arn,
            directory=directory, state=STATE,
        ))
        environment = {
            **quiet, "AWS_ACCESS_KEY_ID": user["access_key_id"], "AWS_SECRET_ACCESS_KEY": user["secret_access_key"],
            "PII_KEY": KEY,
        }
        keys = [item["iata"] for item in items[:1000]] + [f"new-{number}" for number in range(200)]

        def work():
            until("the state table is there", lambda: "shardwalker-state" in dynamodb.meta.client.list_tables()["TableNames"])
            with Writer(airports, keys, seed) as writer:
                for route in ("shaped", "out"):
                    run(binary, environment, "backfill", "-c", config, route)
                while writer.writes < 2000 and not writer.failure:
                    writer.over.wait(0.1)
            run(binary, environment, "status", "-c", config, "--wait", "caught-up", "--timeout", "50s")
            return writer.writes

        writes = []
        run(binary, environment, "run", "-c", config, "--create-state-table", stop=lambda: writes.append(work()))
        items = scan(airports)
        copies = scan(partner)
        for copy in copies.values():
            del copy[STAMP]
        same(f"seed {seed}, the second table", copies, shaped(items))
        same(f"seed {seed}, Parquet", of_parquet(places(directory, "out", "lake", "parquet")), items)
        same(f"seed {seed}, lines", of_lines(places(directory, "out", "lines", "zst")), items)
        same(f"seed {seed}, shaped Parquet", of_parquet(places(directory, "shaped", "part", "parquet")), shaped(items))
        lines = places(directory, "shaped", "part-lines", "zst")
        same(f"seed {seed}, shaped lines", of_lines(lines), shaped(items))
        left = enters_and_leaves(lines[:1])
        assert left > 0, "no item has left the shape: nothing was tried"
    print(
        f"airports: {len(items)} items after {writes[0]} writes, {len(copies)} of them shaped, equal in table and files; "
        f"{left} times one left the shape"
    )

