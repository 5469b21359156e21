//! What the elements of a policy mean, as the IAM user guide has it of each: `policy simulate` says so, and by which
//! statement.

use super::{said, shardwalker};
use serde_json::{Value, json};

const TABLE: &str = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
const ALICE: &str = "arn:aws:iam::111111111111:user/alice";

/// The statements of a policy of the caller's own, the request's context, and whether GetItem of the table is allowed:
/// by which statement, or by which it is denied; `None` where no statement says anything.
type Case = (Value, &'static [&'static str], bool, Option<usize>);

const VPCE: &str = "aws:SourceVpce=vpce-1";
const ONE: &str = "dynamodb:Attributes=id";
const OTHER: &str = "dynamodb:Attributes=secret";

fn judge(principal: &str, statements: &Value, context: &[&str]) -> (bool, Option<usize>, String) {
    let directory = tempfile::tempdir().unwrap();
    let document = json!({"Version": "2012-10-17", "Statement": statements});
    std::fs::write(directory.path().join("own.json"), document.to_string()).unwrap();
    let mut args = vec!["policy", "simulate", "--json", "--principal", principal];
    args.extend(["--action", "dynamodb:GetItem", "--resource", TABLE]);
    for key in context {
        args.extend(["--context", key]);
    }
    args.push("own.json");
    let output = shardwalker(directory.path(), &args);
    let words = said(&output);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words}"));
    let by = answer["by"][0]["statement"].as_u64().map(|index| usize::try_from(index).unwrap());
    assert_eq!(output.status.code(), Some(i32::from(answer["allowed"] == json!(false))), "{words}");
    (answer["allowed"] == json!(true), by, words)
}

fn holds(cases: &[Case]) {
    for (statements, context, allowed, by) in cases {
        let judged = judge(ALICE, statements, context);
        assert_eq!((judged.0, judged.1), (*allowed, *by), "{statements} with {context:?}: {}", judged.2);
    }
}

fn allow(more: &Value) -> Value {
    let mut statement = json!({"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"});
    for (key, value) in more.as_object().unwrap() {
        statement[key] = value.clone();
    }
    if statement.get("NotAction").is_some() {
        statement.as_object_mut().unwrap().remove("Action");
    }
    if statement.get("NotResource").is_some() {
        statement.as_object_mut().unwrap().remove("Resource");
    }
    statement
}

fn when(condition: &Value) -> Value {
    json!([allow(&json!({ "Condition": condition }))])
}

#[test]
fn effects_actions_and_resources() {
    let deny = json!({"Effect": "Deny", "Action": "dynamodb:GetItem", "Resource": TABLE});
    holds(&[
        (json!([]), &[], false, None),
        (json!(allow(&json!({}))), &[], true, Some(0)),
        // A Deny wins wherever it stands.
        (json!([deny, allow(&json!({}))]), &[], false, Some(0)),
        (json!([allow(&json!({})), deny]), &[], false, Some(1)),
        // Actions are compared whatever their case, resources are not.
        (json!([allow(&json!({"Action": "DynamoDB:getitem"}))]), &[], true, Some(0)),
        (json!([allow(&json!({"Action": ["dynamodb:Put*", "dynamodb:?etItem"]}))]), &[], true, Some(0)),
        (json!([allow(&json!({"Action": "dynamodb:Put*"}))]), &[], false, None),
        (json!([allow(&json!({"Resource": TABLE.replace("orders", "Orders")}))]), &[], false, None),
        (json!([allow(&json!({"Resource": TABLE.replace("111111111111", "*")}))]), &[], true, Some(0)),
        (json!([allow(&json!({"NotAction": "dynamodb:Delete*"}))]), &[], true, Some(0)),
        (json!([allow(&json!({"NotAction": ["s3:*", "dynamodb:Get*"]}))]), &[], false, None),
        (json!([allow(&json!({"NotResource": "arn:aws:dynamodb:*:*:table/carts"}))]), &[], true, Some(0)),
        (json!([allow(&json!({"NotResource": TABLE}))]), &[], false, None),
        (
            json!([allow(&json!({})), {"Effect": "Deny", "NotAction": "dynamodb:Scan", "Resource": "*"}]),
            &[],
            false,
            Some(1),
        ),
        (
            json!([allow(&json!({})), {"Effect": "Deny", "Action": "*", "NotResource": TABLE}]),
            &[],
            true,
            Some(0),
        ),
    ]);
}

#[test]
fn conditions() {
    holds(&[
        (when(&json!({"StringEquals": {"aws:SourceVpce": "vpce-1"}})), &[VPCE], true, Some(0)),
        // The keys are compared whatever their case, the values are not.
        (when(&json!({"StringEquals": {"AWS:sourcevpce": "vpce-1"}})), &[VPCE], true, Some(0)),
        (when(&json!({"StringEquals": {"aws:SourceVpce": "VPCE-1"}})), &[VPCE], false, None),
        (when(&json!({"StringEqualsIgnoreCase": {"aws:SourceVpce": "VPCE-1"}})), &[VPCE], true, Some(0)),
        (when(&json!({"StringLike": {"aws:SourceVpce": ["x", "vpce-?"]}})), &[VPCE], true, Some(0)),
        (when(&json!({"StringNotLike": {"aws:SourceVpce": "vpce-*"}})), &[VPCE], false, None),
        // A key that is not there: equal to nothing, and unlike everything.
        (when(&json!({"StringEquals": {"aws:SourceVpce": "vpce-1"}})), &[], false, None),
        (when(&json!({"StringNotEquals": {"aws:SourceVpce": "vpce-1"}})), &[], true, Some(0)),
        (when(&json!({"StringEqualsIfExists": {"aws:SourceVpce": "vpce-1"}})), &[], true, Some(0)),
        (when(&json!({"StringEqualsIfExists": {"aws:SourceVpce": "vpce-2"}})), &[VPCE], false, None),
        (when(&json!({"Null": {"aws:SourceVpce": "true"}})), &[], true, Some(0)),
        (when(&json!({"Null": {"aws:SourceVpce": "true"}})), &[VPCE], false, None),
        (when(&json!({"Null": {"aws:SourceVpce": "false"}})), &[VPCE], true, Some(0)),
        // All operators, and all keys of one, must hold; of the values of a key, one.
        (
            when(&json!({"StringEquals": {"aws:SourceVpce": "vpce-1", "aws:PrincipalOrgID": "o-1"}})),
            &[VPCE],
            false,
            None,
        ),
        (
            when(&json!({"StringEquals": {"aws:SourceVpce": ["vpce-0", "vpce-1"]},
                "Bool": {"aws:SecureTransport": "true"}})),
            &[VPCE],
            true,
            Some(0),
        ),
        (
            when(&json!({"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}})),
            &["aws:SourceIp=192.0.2.7"],
            true,
            Some(0),
        ),
        (
            when(&json!({"NotIpAddress": {"aws:SourceIp": "192.0.2.0/24"}})),
            &["aws:SourceIp=192.0.2.7"],
            false,
            None,
        ),
        (when(&json!({"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}})), &[VPCE], false, None),
        (when(&json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/*"}})), &[], true, Some(0)),
        (
            when(&json!({"NumericLessThan": {"aws:MultiFactorAuthAge": "300"}})),
            &["aws:MultiFactorAuthAge=299"],
            true,
            Some(0),
        ),
        (
            when(&json!({"DateLessThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}})),
            &["aws:CurrentTime=2025-12-31T23:59:59Z"],
            true,
            Some(0),
        ),
    ]);
}

/// From "Multivalued context keys": what the request has, against what the policy names.
#[test]
fn sets() {
    let named = json!({"dynamodb:Attributes": ["id", "total"]});
    holds(&[
        (when(&json!({"ForAllValues:StringEquals": named})), &[ONE], true, Some(0)),
        (when(&json!({"ForAllValues:StringEquals": named})), &[ONE, OTHER], false, None),
        (when(&json!({"ForAllValues:StringEquals": named})), &[], true, Some(0)),
        (
            when(&json!({"ForAllValues:StringEquals": named, "Null": {"dynamodb:Attributes": "false"}})),
            &[],
            false,
            None,
        ),
        (when(&json!({"ForAnyValue:StringEquals": named})), &[ONE, OTHER], true, Some(0)),
        (when(&json!({"ForAnyValue:StringEquals": named})), &[OTHER], false, None),
        (when(&json!({"ForAnyValue:StringEquals": named})), &[], false, None),
        (when(&json!({"ForAnyValue:StringNotEquals": named})), &[ONE, OTHER], true, Some(0)),
        (when(&json!({"ForAllValues:StringNotEquals": named})), &[ONE, OTHER], false, None),
    ]);
}

/// What follows from who asks need not be given.
#[test]
fn variables() {
    let own = |resource: &str| json!([allow(&json!({ "Resource": resource }))]);
    let keys = json!({"ForAllValues:StringLike": {"dynamodb:LeadingKeys": "${aws:username}#*"}});
    holds(&[
        (own("arn:aws:dynamodb:*:${aws:PrincipalAccount}:table/orders"), &[], true, Some(0)),
        (own("arn:aws:dynamodb:*:*:table/${aws:username}"), &[], false, None),
        (own("arn:aws:dynamodb:*:*:table/${aws:username}"), &["aws:username=orders"], true, Some(0)),
        (own("arn:aws:dynamodb:*:*:table/${aws:PrincipalTag/none}*"), &[], false, None),
        (own("arn:aws:dynamodb:*:*:table/${aws:PrincipalTag/none, 'orders'}"), &[], true, Some(0)),
        (own("arn:aws:dynamodb:*:*:table/order${*}"), &[], false, None),
        (when(&keys), &["dynamodb:LeadingKeys=alice#1"], true, Some(0)),
        (when(&keys), &["dynamodb:LeadingKeys=bob#1"], false, None),
    ]);
    let session = "arn:aws:sts::111111111111:assumed-role/app/one";
    let judged = judge(session, &own("arn:aws:dynamodb:*:*:table/${aws:username, 'orders'}"), &[]);
    assert!(judged.0, "a role's session has no user name: {}", judged.2);
}

/// In a resource's policy, a Deny of everybody else.
#[test]
fn not_principal() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let allow = json!({"Statement": [{"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"}]});
    std::fs::write(at.join("own.json"), allow.to_string()).unwrap();
    let others = json!({"Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*",
        "NotPrincipal": {"AWS": [ALICE, "111111111111"]}}]});
    std::fs::write(at.join("table.json"), others.to_string()).unwrap();
    let bob = ALICE.replace("alice", "bob");
    for (principal, code, says) in
        [(ALICE, 0, "allowed by statement 1 of own.json"), (&bob, 1, "denied by statement 1 of table.json")]
    {
        let mut args = vec!["policy", "simulate", "--principal", principal, "--action", "dynamodb:GetItem"];
        args.extend(["--resource", TABLE, "own.json", "table.json"]);
        let output = shardwalker(at, &args);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(said(&output).contains(says), "{output:?}");
    }
}
