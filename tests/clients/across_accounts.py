"""Drives boto3 and the AWS CLI against a running sandbox: two accounts, policies, writes, a stream.

Usage: across_accounts.py ACCOUNTS_JSON, the line that `shardwalker sandbox --json` prints.
Exits with an assertion when the sandbox does not answer as AWS does.
"""

import json
import os
import subprocess
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ready = json.loads(sys.argv[1])
REGION = "eu-west-1"
NO_RETRIES = Config(retries={"max_attempts": 1, "mode": "standard"})


def environment(account):
    user = next(a for a in ready["accounts"] if a["id"] == account)["users"][0]
    return {
        "AWS_ACCESS_KEY_ID": user["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": user["secret_access_key"],
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": ready["endpoint"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_PAGER": "",
    }


def client(service, account, keys=None):
    env = environment(account)
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=ready["endpoint"],
        config=NO_RETRIES,
        aws_access_key_id=keys["AccessKeyId"] if keys else env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["SecretAccessKey"] if keys else env["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=keys["SessionToken"] if keys else None,
    )


def aws(account, *arguments):
    """The AWS CLI as one types it; returns its JSON, or its complaint."""
    cli = os.path.join(os.path.dirname(sys.executable), "aws")
    done = subprocess.run(
        [cli, "--output", "json", *arguments],
        env={**os.environ, **environment(account)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        return done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else {}


def denied(call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDeniedException", error
        return error.response["Error"]["Message"]
    raise AssertionError(f"{call} was not denied")


def policy(principal, actions):
    statement = {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


A, B = "111111111111", "222222222222"
assert aws(A, "sts", "get-caller-identity")["Arn"] == f"arn:aws:iam::{A}:user/admin"

# Tables in two accounts: one by boto3, one by the CLI.
owner = client("dynamodb", A)
created = owner.create_table(
    TableName="orders",
    KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    BillingMode="PAY_PER_REQUEST",
    StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
)["TableDescription"]
owner.get_waiter("table_exists").wait(TableName="orders")
table, stream = created["TableArn"], created["LatestStreamArn"]
assert table == f"arn:aws:dynamodb:{REGION}:{A}:table/orders", table
made = aws(
    B, "dynamodb", "create-table", "--table-name", "copy", "--billing-mode", "PAY_PER_REQUEST",
    "--attribute-definitions", "AttributeName=id,AttributeType=S",
    "--key-schema", "AttributeName=id,KeyType=HASH",
)
assert made["TableDescription"]["TableArn"] == f"arn:aws:dynamodb:{REGION}:{B}:table/copy", made
assert aws(B, "dynamodb", "list-tables") == {"TableNames": ["copy"]}

# Across accounts nothing goes without a policy, and the denial is AWS's.
reader, reader_streams = client("dynamodb", B), client("dynamodbstreams", B)
message = denied(reader.get_item, TableName=table, Key={"id": {"S": "1"}})
assert message == (
    f"User: arn:aws:iam::{B}:user/admin is not authorized to perform: dynamodb:GetItem on resource: {table} "
    "because no resource-based policy allows the dynamodb:GetItem action"
), message
denied(reader_streams.describe_stream, StreamArn=stream)
complaint = aws(B, "dynamodb", "get-item", "--table-name", table, "--key", '{"id": {"S": "1"}}')
assert "AccessDeniedException" in complaint, complaint

# Policies: on the table by boto3, on the stream by the CLI.
owner.put_resource_policy(ResourceArn=table, Policy=policy(B, "dynamodb:GetItem"))
reading = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
put = aws(A, "dynamodb", "put-resource-policy", "--resource-arn", stream, "--policy", policy(B, reading))
assert put["RevisionId"], put

# Every type, written and read across accounts.
item = {
    "id": {"S": "1"}, "n": {"N": "123456789012345678901234567890.12345678"}, "b": {"B": b"\x00\xff"},
    "flag": {"BOOL": True}, "none": {"NULL": True}, "list": {"L": [{"S": ""}, {"M": {"deep": {"N": "-0.5"}}}]},
    "strings": {"SS": ["a", "b"]}, "numbers": {"NS": ["1", "2"]}, "bytes": {"BS": [b"a", b"b"]},
}
owner.put_item(TableName="orders", Item=item)
owner.update_item(
    TableName=table, Key={"id": {"S": "1"}}, UpdateExpression="SET note = :n",
    ExpressionAttributeValues={":n": {"S": "late"}},
)
read = reader.get_item(TableName=table, Key={"id": {"S": "1"}}, ConsistentRead=True)["Item"]
for name in ("strings", "numbers", "bytes"):
    kind, values = next(iter(read[name].items()))
    read[name] = {kind: sorted(values)}
assert read == {**item, "note": {"S": "late"}}, read
denied(reader.put_item, TableName=table, Item={"id": {"S": "2"}})
owner.delete_item(TableName="orders", Key={"id": {"S": "1"}})

# The stream, from the other account.
description = reader_streams.describe_stream(StreamArn=stream)["StreamDescription"]
events = []
for shard in description["Shards"]:
    iterator = reader_streams.get_shard_iterator(
        StreamArn=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    events += reader_streams.get_records(ShardIterator=iterator)["Records"]
assert [event["eventName"] for event in events] == ["INSERT", "MODIFY", "REMOVE"], events
assert events[1]["dynamodb"]["NewImage"]["note"] == {"S": "late"}
assert events[0]["dynamodb"]["NewImage"]["b"] == {"B": b"\x00\xff"}
listed = aws(B, "dynamodbstreams", "describe-stream", "--stream-arn", stream)
assert listed["StreamDescription"]["StreamArn"] == stream, listed

# A role of the other account with an external id, set up by the CLI.
trust = {
    "Version": "2012-10-17",
    "Statement": [{
        "Effect": "Allow", "Principal": {"AWS": A}, "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": "secret"}},
    }],
}
role = aws(B, "iam", "create-role", "--role-name", "peer", "--assume-role-policy-document", json.dumps(trust))
role = role["Role"]
assert role["AssumeRolePolicyDocument"] == trust, role
writing = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "dynamodb:PutItem", "Resource": f"arn:aws:dynamodb:{REGION}:{B}:table/copy"}
]}
aws(B, "iam", "put-role-policy", "--role-name", "peer", "--policy-name", "write",
    "--policy-document", json.dumps(writing))
sts = client("sts", A)
try:
    sts.assume_role(RoleArn=role["Arn"], RoleSessionName="walker")
    raise AssertionError("assumed without the external id")
except ClientError as error:
    assert error.response["Error"]["Code"] == "AccessDenied", error
session = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="walker", ExternalId="secret")["Credentials"]
peer = client("dynamodb", A, session)
peer.put_item(TableName=f"arn:aws:dynamodb:{REGION}:{B}:table/copy", Item={"id": {"S": "1"}})
denied(peer.scan, TableName=f"arn:aws:dynamodb:{REGION}:{B}:table/copy")
assert aws(B, "dynamodb", "scan", "--table-name", "copy")["Count"] == 1

# A user with a key of its own, set up by boto3.
iam = client("iam", B)
iam.create_user(UserName="alice")
key = iam.create_access_key(UserName="alice")["AccessKey"]
alice = client("dynamodb", B, {**key, "SessionToken": None})
denied(alice.scan, TableName="copy")
iam.put_user_policy(UserName="alice", PolicyName="read", PolicyDocument=json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "dynamodb:Scan", "Resource": "*"}]}
))
assert alice.scan(TableName="copy")["Count"] == 1
iam.delete_user_policy(UserName="alice", PolicyName="read")
denied(alice.scan, TableName="copy")

# A condition's failure returns the item; a transaction says which action failed.
owner.put_item(TableName="orders", Item={"id": {"S": "9"}, "v": {"N": "1"}})
try:
    owner.put_item(
        TableName="orders", Item={"id": {"S": "9"}}, ConditionExpression="attribute_not_exists(id)",
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    )
    raise AssertionError("the condition held")
except owner.exceptions.ConditionalCheckFailedException as error:
    assert error.response["Item"]["v"] == {"N": "1"}, error.response
try:
    owner.transact_write_items(TransactItems=[
        {"Put": {"TableName": "orders", "Item": {"id": {"S": "10"}}}},
        {"Delete": {"TableName": table, "Key": {"id": {"S": "9"}}, "ConditionExpression": "v = :v",
                    "ExpressionAttributeValues": {":v": {"N": "2"}}}},
    ])
    raise AssertionError("the transaction went through")
except owner.exceptions.TransactionCanceledException as error:
    codes = [reason["Code"] for reason in error.response["CancellationReasons"]]
    assert codes == ["None", "ConditionalCheckFailed"], codes
print(f"boto3 {boto3.__version__} and the AWS CLI agree with the sandbox")
