"""Reads policy documents with parliament, the linter of IAM policies: every action exists, takes a resource
of that kind, and has the condition keys that are asked of it.

    python policies.py DOCUMENTS.json

The file is what `policy` wrote.
"""

import json
import pathlib
import sys
import warnings

# It says what it uses will go; that is not about the documents.
warnings.filterwarnings("ignore")

from parliament import analyze_policy_string  # noqa: E402

# What it would be blind not to see.
WRONG = {
    "UNKNOWN_ACTION": {"Action": "dynamodb:GetItems", "Resource": "*"},
    "RESOURCE_MISMATCH": {
        "Action": "dynamodb:GetRecords",
        "Resource": "arn:aws:dynamodb:eu-west-1:111111111111:table/x",
    },
}


def findings(policy):
    return [(found.issue, str(found.detail)) for found in analyze_policy_string(json.dumps(policy)).findings]


def main():
    for issue, statement in WRONG.items():
        seen = findings({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})
        assert issue in [found for found, _ in seen], f"it does not see {issue}: {seen}"
    documents = json.loads(pathlib.Path(sys.argv[1]).read_text())["documents"]
    faults = []
    for document in documents:
        if document["attach"].startswith("trust policy of "):
            # Whose resource is the role itself.
            for statement in document["policy"]["Statement"]:
                statement["Resource"] = document["attach"].split()[-1]
        for issue, detail in findings(document["policy"]):
            # In a key's policy it means the key.
            if issue == "RESOURCE_STAR" and "key policy" in document["attach"]:
                continue
            faults.append(f"{document['file']}: {issue}: {detail}")
    if faults or not documents:
        sys.exit("\n".join(faults) or "there are no documents")
    print(len(documents))


if __name__ == "__main__":
    main()
