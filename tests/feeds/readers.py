"""The feeds of one run, read back by pyarrow and duckdb."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from decimal import Decimal

import boto3
import duckdb
import pyarrow.dataset
from boto3.dynamodb.types import Binary

REGION = "eu-west-1"
WIDEST = Decimal("99999999999999999999999999999999999999")
LIMIT = 60
# No double has their digits.
LONG = (Decimal("12345678901234567890.123"), Decimal("9007199254740993.5"))

CONFIG = """
endpoint = "{sandbox}"
[state]
table = "shardwalker-state"
region = "{region}"
[admin]
listen = "off"
[[member]]
name = "orders"
table = "{table}"
[[feed]]
name = "lines"
url = "s3://lake/lines"
region = "{region}"
endpoint = "{s3}"
format = "dynamodb-json"
images = "both"
roll_age = "2s"
[[feed]]
name = "columns"
url = "s3://lake/columns"
region = "{region}"
endpoint = "{s3}"
format = "parquet"
roll_age = "2s"
columns = {{ id = "string", total = "decimal(38,0)", price = "decimal(10,2)", count = "int64", raw = "binary", \
tags = "list", ok = "boolean", nested = "json" }}
[[feed]]
name = "guessed"
url = "file://{directory}/guessed"
format = "parquet"
compression = "none"
roll_age = "2s"
[[feed]]
name = "plain"
url = "file://{directory}/plain"
compression = "gzip"
partition = "day"
roll_age = "2s"
[[route]]
name = "out"
from = "orders"
to = ["lines", "columns", "guessed", "plain"]
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, state):
    end = time.monotonic() + LIMIT
    while not (found := state()):
        assert time.monotonic() < end, f"{what}: not within {LIMIT} s"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def running(command, log, environment):
    """A process that ends with the block."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answers(url):
    def look():
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status < 500
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    return look


def write(table):
    """Every type, rewritten and deleted; returns how many records that makes."""
    item = {
        "total": WIDEST, "price": Decimal("12.5"), "count": 7, "raw": b"\x00\xff", "tags": {"b", "a"}, "ok": True,
        "nested": {"list": [1, "two", None], "map": {"deep": Decimal("0.1")}}, "none": None,
        "numbers": {Decimal(1), Decimal("2.5")}, "blobs": {b"\x01", b"\x02"}, "extra": "only in _rest",
    }
    for number in range(200):
        table.put_item(Item={"id": f"o-{number:03}", **item, "count": number})
    for number in range(50):
        table.put_item(Item={"id": f"o-{number:03}", "count": "not a number", "price": Decimal("0.001")})
    for number in range(50, 80):
        table.delete_item(Key={"id": f"o-{number:03}"})
    # Later than the first file, from which columns are inferred.
    for number, price in enumerate(LONG):
        table.put_item(Item={"id": f"long-{number}", "price": price, "tags": {"x"}, "count": 1})
    table.put_item(Item={"id": "empty", "tags": [], "count": 1})
    return 200 + 50 + 30 + len(LONG) + 1


def check(binary):
    with tempfile.TemporaryDirectory(prefix="feeds-") as name, contextlib.ExitStack() as stack:
        directory = pathlib.Path(name)
        quiet = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
        sandbox = stack.enter_context(
            running([binary, "sandbox", "--listen", "127.0.0.1:0", "--json"], directory / "sandbox.log", quiet)
        )
        ready = json.loads(sandbox.stdout.readline())
        user = ready["accounts"][0]["users"][0]
        keys = {"aws_access_key_id": user["access_key_id"], "aws_secret_access_key": user["secret_access_key"]}
        port = free_port()
        moto = pathlib.Path(sys.executable).with_name("moto_server")
        stack.enter_context(running([moto, "-H", "127.0.0.1", "-p", port], directory / "moto.log", quiet))
        s3_url = f"http://127.0.0.1:{port}"
        until("moto answers", answers(s3_url + "/moto-api/"))
        s3 = boto3.client("s3", region_name=REGION, endpoint_url=s3_url, **keys)
        s3.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": REGION})
        dynamodb = boto3.resource("dynamodb", region_name=REGION, endpoint_url=ready["endpoint"], **keys)
        table = dynamodb.create_table(
            TableName="orders", BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        table.wait_until_exists()
        records = write(table)
        config = directory / "shardwalker.toml"
        config.write_text(
            CONFIG.format(
                sandbox=ready["endpoint"], region=REGION, table=table.table_arn, s3=s3_url, directory=directory
            )
        )
        environment = {
            **quiet, "AWS_ACCESS_KEY_ID": user["access_key_id"], "AWS_SECRET_ACCESS_KEY": user["secret_access_key"],
        }
        run(binary, environment, "run", "-c", config, "--create-state-table", stop=lambda: until(
            "every record is in every feed", lambda: all(count(s3, directory, feed) >= records for feed in FEEDS)
        ))
        for feed in FEEDS:
            assert count(s3, directory, feed) == records, f"{feed}: {count(s3, directory, feed)} records"
        for object in s3.list_objects_v2(Bucket="lake")["Contents"]:
            path = directory / object["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file("lake", object["Key"], str(path))
        items = {item["id"]: item for item in table.scan()["Items"]}
        lines(directory, records, items)
        columns(directory, records, items)
        guessed(directory, records)
        plain(directory, records)
        done = run(binary, environment, "check", "-c", config)
        assert "lines" in done and "ok" in done, done
        left = s3.list_objects_v2(Bucket="lake", Prefix="lines/_probe").get("Contents", [])
        assert not left, f"check left {left}"
        tail(binary, environment, config)
        place = (ready["endpoint"], s3_url, s3, dynamodb, table)
        import exports  # it uses what is here

        exports.check(binary, directory, {**os.environ, **environment}, *place)
    print(f"feeds: {records} records in each of {', '.join(FEEDS)}, read by pyarrow and duckdb")


FEEDS = ("lines", "columns", "guessed", "plain")


def count(s3, directory, feed):
    """Records by the manifest."""
    if feed in ("lines", "columns"):
        listed = s3.list_objects_v2(Bucket="lake", Prefix=f"{feed}/out/{feed}/_manifest/").get("Contents", [])
        entries = [s3.get_object(Bucket="lake", Key=entry["Key"])["Body"].read() for entry in listed]
    else:
        found = (directory / feed).glob(f"out/{feed}/_manifest/**/*.json")
        entries = [path.read_bytes() for path in found]
    return sum(json.loads(entry)["records"] for entry in entries)


def run(binary, environment, *arguments, stop=None):
    """Runs a command; when `stop` is given, until it returns, and then asks it to end. Returns its stdout."""
    process = subprocess.Popen(
        [str(binary), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )
    try:
        if stop:
            stop()
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, f"{arguments[0]} ended with {process.returncode}: {out}"
    return out


def lines(directory, records, items):
    """DynamoDB JSON, by duckdb: each record once, and together what the table holds."""
    files = f"{directory}/lines/out/lines/dt=*/hour=*/*.jsonl.zst"
    query = "select sequence, version, event, key, new, old from read_json(?, format='newline_delimited', columns=?)"
    shape = {"sequence": "VARCHAR", "version": "VARCHAR", "event": "VARCHAR", "key": "JSON", "new": "JSON", "old": "JSON"}
    rows = duckdb.execute(query + " order by version", [files, shape]).fetchall()
    assert len(rows) == records and len({row[0] for row in rows}) == records, len(rows)
    state = {}
    for _, _, event, key, new, _ in rows:
        id = json.loads(key)["id"]["S"]
        if event == "REMOVE":
            del state[id]
        else:
            state[id] = json.loads(new)
    assert state.keys() == items.keys()
    whole = state["o-150"]
    assert whole["total"] == {"N": str(WIDEST)}, whole["total"]
    assert base64.b64decode(whole["raw"]["B"]) == b"\x00\xff"
    assert whole["tags"] == {"SS": ["a", "b"]} and whole["none"] == {"NULL": True}
    assert whole["blobs"] == {"BS": ["AQ==", "Ag=="]}
    old = [json.loads(row[5]) for row in rows if row[2] == "REMOVE"]
    assert all(image["total"] == {"N": str(WIDEST)} for image in old)


def columns(directory, records, items):
    """Parquet with a schema, by pyarrow and duckdb."""
    dataset = pyarrow.dataset.dataset(directory / "columns" / "out" / "columns", format="parquet", partitioning="hive")
    found = dataset.to_table().sort_by("_version").to_pylist()
    assert len(found) == records and len({row["_sequence"] for row in found}) == records
    last = {row["id"]: row for row in found}
    assert {id for id, row in last.items() if row["_event"] != "REMOVE"} == items.keys()
    row, item = last["o-150"], items["o-150"]
    assert row["total"] == WIDEST == item["total"], row["total"]
    assert row["price"] == Decimal("12.50") and row["count"] == 150 and row["ok"] is True
    assert row["raw"] == b"\x00\xff" and Binary(row["raw"]) == item["raw"]
    assert row["tags"] == ["a", "b"], row["tags"]
    assert json.loads(row["nested"]) == {"list": [1, "two", None], "map": {"deep": 0.1}}
    rest = json.loads(row["_rest"])
    assert rest["extra"] == {"S": "only in _rest"} and sorted(rest) == ["blobs", "extra", "none", "numbers"], rest
    odd = last["o-000"]
    assert odd["count"] is None and odd["price"] is None and odd["tags"] is None
    assert json.loads(odd["_rest"]) == {"count": {"S": "not a number"}, "price": {"N": "0.001"}}, odd["_rest"]
    files = f"{directory}/columns/out/columns/dt=*/hour=*/*.parquet"
    total, types = duckdb.execute(
        "select sum(total)::hugeint, any_value(typeof(total) || ' ' || typeof(tags) || ' ' || typeof(_created)) "
        "from read_parquet(?, hive_partitioning = true) where _event <> 'REMOVE' and count = 150",
        [files],
    ).fetchone()
    assert total == int(WIDEST), total
    assert types.startswith("DECIMAL(38,0) VARCHAR[] TIMESTAMP"), types


def guessed(directory, records):
    """Parquet with columns that were inferred, by duckdb."""
    files = f"{directory}/guessed/out/guessed/dt=*/hour=*/*.parquet"
    rows = duckdb.execute("select * exclude (_created) from read_parquet(?)", [files])
    names = [column[0] for column in rows.description]
    found = [dict(zip(names, row)) for row in rows.fetchall()]
    assert len(found) == records
    whole = [row for row in found if row["id"] == "o-150"][0]
    assert whole["total"] == str(WIDEST), whole["total"]
    assert whole["raw"] == b"\x00\xff" and whole["tags"] == ["a", "b"] and whole["numbers"] == ["1", "2.5"], whole
    for number, price in enumerate(LONG):
        row = [row for row in found if row["id"] == f"long-{number}"][0]
        kept = row["price"] if isinstance(row["price"], str) else json.loads(row["_rest"])["price"]["N"]
        assert Decimal(kept) == price, (row["price"], row["_rest"])
    dataset = pyarrow.dataset.dataset(directory / "guessed" / "out" / "guessed", format="parquet", partitioning="hive")
    empty = dataset.to_table(filter=pyarrow.dataset.field("id") == "empty").to_pylist()
    assert len(empty) == 1 and empty[0]["tags"] == [], empty


def plain(directory, records):
    """Plain JSON, by duckdb's own guess of its shape."""
    files = f"{directory}/plain/out/plain/dt=*/*.jsonl.gz"
    found = duckdb.execute("select count(*), count(distinct sequence) from read_json_auto(?)", [files]).fetchone()
    assert found == (records, records), found


def tail(binary, environment, config):
    """All of the stream, and an end without complaint when nobody reads any more."""
    command = [str(binary), "tail", "-c", str(config), "orders", "--from", "trim-horizon", "--format", "dynamodb-json"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )
    try:
        first = json.loads(process.stdout.readline())
        assert first["event"] == "INSERT" and first["member"] == "orders" and "version" not in first, first
        process.stdout.close()
        code = process.wait(timeout=LIMIT)
        assert code == 0, f"tail ended with {code}: {process.stderr.read()}"
    finally:
        process.kill()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment},
    )
    try:
        seen = {json.loads(process.stdout.readline())["sequence"] for _ in range(280)}
        assert len(seen) == 280, len(seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT) == 0
    finally:
        process.kill()
