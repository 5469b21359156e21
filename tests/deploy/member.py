"""Compares what the templates for members allow with what `policy` writes.

    python member.py CLOUDFORMATION TERRAFORM DOCUMENTS.json...

Each file of documents is named PART.FEATURES.json: what `policy` wrote for a member that plays that part, by a role.
"""

import json
import pathlib
import sys

import hcl2
from cfnlint.decode import cfn_yaml


def listed(value):
    return [value] if isinstance(value, str) else list(value)


def by_cloudformation(path, part, whole):
    template = cfn_yaml.load(path)
    values = {"Part": part, "ReadWhole": "true" if whole else "false"}

    def holds(condition):
        if "Fn::Not" in condition:
            return not holds(condition["Fn::Not"][0])
        reference, wanted = condition["Fn::Equals"]
        return values[reference["Ref"]] == wanted

    actions = set()
    policies = template["Resources"]["Role"]["Properties"]["Policies"]
    for statement in policies[0]["PolicyDocument"]["Statement"]:
        if "Fn::If" in statement:
            condition, statement, _ = statement["Fn::If"]
            if not holds(template["Conditions"][condition]):
                continue
        actions.update(listed(statement["Action"]))
    return actions


def by_terraform(path, part, whole):
    with open(path) as file:
        (local,) = hcl2.load(file)["locals"]
    local = json.loads(json.dumps(local).replace('\\"', ""))
    actions = {"dynamodb:DescribeTable", *local["writes"][part]}
    actions.update(local["whole"] if whole else [])
    actions.update(local["on_stream"] if part != "peer" else [])
    return actions


def main():
    cloudformation, terraform, *files = sys.argv[1:]
    for file in files:
        part, features, _ = pathlib.Path(file).name.split(".")
        wanted = set()
        for document in json.loads(pathlib.Path(file).read_text())["documents"]:
            if document["attach"] == "policy of arn:aws:iam::111111111111:role/in":
                for statement in document["policy"]["Statement"]:
                    wanted.update(statement["Action"])
        assert len(wanted) > 2, file
        for path, read in [(cloudformation, by_cloudformation), (terraform, by_terraform)]:
            allowed = read(path, part, features == "whole")
            if allowed != wanted:
                sys.exit(f"{path}: of a {part} ({features}), policy allows {sorted(wanted)}, this {sorted(allowed)}")


if __name__ == "__main__":
    main()
