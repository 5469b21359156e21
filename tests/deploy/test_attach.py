"""What the function of the generated CloudFormation templates does with policies, its own and those of others."""

import pathlib
import sys
import types
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "src/access/attach.py"
TABLE = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
OLD, NEW = f"{TABLE}/stream/2026-01-01", f"{TABLE}/stream/2026-02-02"


class NotFound(Exception):
    pass


class DynamoDb:
    """Resource policies as DynamoDB keeps them: one for each resource, put conditionally on request."""

    exceptions = types.SimpleNamespace(ResourceNotFoundException=NotFound, PolicyNotFoundException=NotFound)

    def __init__(self):
        self.policies = {}

    def describe_table(self, TableName):
        return {"Table": {"LatestStreamArn": NEW}}

    def put_resource_policy(self, ResourceArn, Policy, ExpectedRevisionId=None):
        if ExpectedRevisionId == "NO_POLICY" and ResourceArn in self.policies:
            raise NotFound("there is a policy")
        self.policies[ResourceArn] = Policy

    def delete_resource_policy(self, ResourceArn):
        if self.policies.pop(ResourceArn, None) is None:
            raise NotFound("there is none")


class Attach(unittest.TestCase):
    def setUp(self):
        self.dynamodb, self.answers, self.code = DynamoDb(), [], {}
        answer = types.SimpleNamespace(SUCCESS="SUCCESS", FAILED="FAILED", send=self.answer)
        modules = {"boto3": types.SimpleNamespace(client=lambda *_, **__: self.dynamodb), "cfnresponse": answer}
        self.addCleanup(lambda before: (sys.modules.clear(), sys.modules.update(before)), dict(sys.modules))
        sys.modules.update(modules)
        exec(compile(SOURCE.read_text(), SOURCE, "exec"), self.code)

    def answer(self, event, context, status, data, resource, reason=None):
        self.answers.append((status, resource))

    def ask(self, kind, resource=None, on="Table"):
        event = {"RequestType": kind, "ResourceProperties": {"Table": TABLE, "On": on, "Policy": "ours"}}
        if resource is not None:
            event["PhysicalResourceId"] = resource
        self.code["handler"](event, None)
        return self.answers[-1]

    def test_its_own_policy_comes_and_changes_and_goes(self):
        self.assertEqual(self.ask("Create"), ("SUCCESS", TABLE))
        self.assertEqual(self.ask("Update", TABLE), ("SUCCESS", TABLE))
        self.assertEqual(self.ask("Delete", TABLE), ("SUCCESS", TABLE))
        self.assertEqual(self.ask("Delete", TABLE), ("SUCCESS", TABLE), "gone already")
        self.assertEqual(self.dynamodb.policies, {})

    def test_the_policy_of_others_stays_and_survives_the_roll_back(self):
        self.dynamodb.policies[TABLE] = "theirs"
        status, resource = self.ask("Create")
        self.assertEqual(status, "FAILED")
        self.ask("Delete", resource)
        self.assertEqual(self.dynamodb.policies, {TABLE: "theirs"})

    def test_a_new_stream_gets_the_policy(self):
        self.dynamodb.policies[OLD] = "ours"
        self.assertEqual(self.ask("Update", OLD, on="Stream"), ("SUCCESS", NEW))
        # CloudFormation deletes what has another name now.
        self.ask("Delete", OLD, on="Stream")
        self.assertEqual(self.dynamodb.policies, {NEW: "ours"})
        self.dynamodb.policies[NEW] = "theirs"
        self.assertEqual(self.ask("Update", OLD, on="Stream"), ("FAILED", OLD))


if __name__ == "__main__":
    unittest.main()
