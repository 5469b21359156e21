"""A backfill from an export in a bucket, while the table is written to."""

import base64
import datetime
import gzip
import hashlib
import json
import signal
import subprocess

from boto3.dynamodb.types import TypeSerializer

from readers import LIMIT, REGION, running, until

CONFIG = """
endpoint = "{sandbox}"
[state]
table = "shardwalker-copy"
region = "{region}"
[admin]
listen = "off"
[[member]]
name = "orders"
table = "{table}"
[[member]]
name = "copy"
table = "{copy}"
[[route]]
name = "copied"
from = "orders"
to = ["copy"]
start = "latest"
"""
PREFIX = "AWSDynamoDB/01700000000000-0a1b2c3d"


def upload(s3, table, prefix):
    """What an export of the table would put into the bucket now, in three data files."""
    items = table.scan()["Items"]
    serializer, files = TypeSerializer(), []
    for number in range(3):
        part = items[number::3]
        rows = [{"Item": {name: serializer.serialize(value) for name, value in item.items()}} for item in part]
        data = gzip.compress("".join(json.dumps(row, default=binary) + "\n" for row in rows).encode())
        key = f"{prefix}/data/part{number}.json.gz"
        s3.put_object(Bucket="lake", Key=key, Body=data)
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        files.append({"itemCount": len(part), "md5Checksum": md5, "etag": "x", "dataFileS3Key": key})
    now = datetime.datetime.now(datetime.timezone.utc)
    summary = {
        "version": "2020-06-30", "exportArn": f"{table.table_arn}/export/{prefix.rsplit('/')[-1]}",
        "tableArn": table.table_arn, "tableId": table.table_id, "exportTime": now.isoformat().replace("+00:00", "Z"),
        "s3Bucket": "lake", "itemCount": len(items), "billedSizeBytes": 0, "outputFormat": "DYNAMODB_JSON",
        "exportType": "FULL_EXPORT",
    }
    s3.put_object(Bucket="lake", Key=f"{prefix}/manifest-files.json", Body="\n".join(map(json.dumps, files)))
    s3.put_object(Bucket="lake", Key=f"{prefix}/manifest-summary.json", Body=json.dumps(summary))
    return len(items)


def binary(value):
    return base64.b64encode(bytes(value)).decode()


def content(table):
    items = table.scan(ConsistentRead=True)["Items"]
    return {item["id"]: {name: value for name, value in item.items() if name != "shardwalker"} for item in items}


def check(binary_path, directory, environment, sandbox, s3_url, s3, dynamodb, table):
    copy = dynamodb.create_table(
        TableName="copy", BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )
    copy.wait_until_exists()
    config = directory / "copy.toml"
    config.write_text(CONFIG.format(sandbox=sandbox, region=REGION, table=table.table_arn, copy=copy.table_arn))

    def command(*arguments):
        return [binary_path, arguments[0], "-c", config, *arguments[1:]]

    def backfill(prefix, *more):
        return subprocess.run(
            [str(part) for part in command(
                "backfill", "copied", "--from-export", f"s3://lake/{prefix}", "--export-endpoint", s3_url, *more
            )],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, env={**environment},
        )

    with running(command("run", "--create-state-table"), directory / "copy.log", environment) as service:
        until("the service runs", lambda: subprocess.run(
            [str(part) for part in command("status", "--wait", "caught-up")], stdin=subprocess.DEVNULL,
            capture_output=True, timeout=LIMIT, env={**environment},
        ).returncode == 0)
        count = upload(s3, table, PREFIX)
        table.put_item(Item={"id": "o-100", "changed": "after the export"})
        table.delete_item(Key={"id": "o-101"})
        missing = backfill("AWSDynamoDB/nothing")
        assert missing.returncode == 2 and "manifest-summary.json: it is not there" in missing.stderr, missing.stderr
        last = f"{PREFIX}/data/part2.json.gz"
        whole = s3.get_object(Bucket="lake", Key=last)["Body"].read()
        s3.put_object(Bucket="lake", Key=last, Body=whole[:-1])
        torn = backfill(PREFIX, "--json")
        assert torn.returncode == 2 and "part2.json.gz: its checksum is not that of the manifest" in torn.stderr, torn.stderr
        s3.put_object(Bucket="lake", Key=last, Body=whole)
        done = backfill(PREFIX, "--json")
        assert done.returncode == 0, done.stderr
        picture = json.loads(done.stdout)
        assert picture["items"] == count and picture["read_units"] == 0, picture
        until("the copy is the same", lambda: content(copy) == content(table))
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=LIMIT) == 0
    print(f"exports: {count} items from a bucket, while the table was written to")
