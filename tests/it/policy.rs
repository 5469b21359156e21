//! The commands about access, as the real binary: `policy`, `policy simulate` against the published tables of how AWS
//! evaluates policies, and `check`.

mod elements;

use crate::process::Served;
use crate::world::resource_policy;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = r#"
    [state]
    table = "arn:aws:dynamodb:eu-west-1:999999999999:table/state"
    [[member]]
    name = "orders"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
    [[member]]
    name = "copy"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/copy"
    assume_role = { role = "arn:aws:iam::222222222222:role/in", external_id = "orders" }
    [[route]]
    name = "r"
    from = "orders"
    to = ["copy"]
"#;

fn shardwalker(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwalker"));
    command.current_dir(directory).env_remove("SHARDWALKER_CONFIG").args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn documents_are_printed_saved_and_simulated() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("c.toml"), CONFIG).unwrap();
    let output = shardwalker(at, &["policy", "-c", "c.toml", "--out", "policies"]);
    assert!(output.status.success(), "{output:?}");
    let documents: Value = serde_json::from_slice(&output.stdout).unwrap();
    let documents = documents["documents"].as_array().unwrap();
    assert_eq!(documents.len(), 5, "{documents:#?}");
    for document in documents {
        let file = at.join("policies").join(document["file"].as_str().unwrap());
        let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(saved, document["policy"]);
        assert!(document["why"].as_str().unwrap().len() > 10);
        assert!(document["apply"].as_str().unwrap().starts_with("aws "));
    }
    let side = shardwalker(at, &["policy", "-c", "c.toml", "--side", "222222222222"]);
    let side: Value = serde_json::from_slice(&side.stdout).unwrap();
    let accounts: Vec<&Value> = side["documents"].as_array().unwrap().iter().map(|d| &d["account"]).collect();
    assert_eq!(accounts, ["222222222222"; 2]);
    assert_eq!(shardwalker(at, &["policy", "-c", "c.toml", "--side", "1"]).status.code(), Some(2));
    let both = ["policy", "-c", "c.toml", "--vpce", "vpce-1", "--source-ip", "192.0.2.0/24"];
    assert_eq!(shardwalker(at, &both).status.code(), Some(2), "no request has both");

    // What was written is what decides.
    let simulate = |action: &str, resource: &str| {
        let (own, table) = (
            "policies/999999999999.role.shardwalker.json",
            "policies/111111111111.stream.eu-west-1.orders.json",
        );
        let principal = "arn:aws:sts::999999999999:assumed-role/shardwalker/task-1";
        shardwalker(
            at,
            &[
                "policy",
                "simulate",
                "--principal",
                principal,
                "--action",
                action,
                "--resource",
                resource,
                own,
                table,
            ],
        )
    };
    let stream = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026-01-01T00:00:00.000";
    let allowed = simulate("dynamodb:GetRecords", stream);
    assert_eq!(allowed.status.code(), Some(0), "{allowed:?}");
    let words = said(&allowed);
    assert!(words.contains("allowed by statement 1 of policies/999999999999.role"), "{words}");
    assert!(words.contains("and by statement 1 (ShardwalkerStream) of policies/111111111111"), "{words}");
    let denied = simulate("dynamodb:Scan", stream.split("/stream").next().unwrap());
    assert_eq!(denied.status.code(), Some(1));
    assert!(said(&denied).contains("because no identity-based policy allows the dynamodb:Scan action"));
}

#[test]
fn without_an_account_the_placeholder_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let named = "table = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"";
    let config = CONFIG.replace(named, "table = \"state\"\nregion = \"eu-west-1\"");
    std::fs::write(directory.path().join("c.toml"), config).unwrap();
    let output = shardwalker(directory.path(), &["policy", "-c", "c.toml"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("give --principal"), "{output:?}");
    let principal = ["policy", "-c", "c.toml", "--principal", "arn:aws:iam::123456789012:role/x"];
    let output = shardwalker(directory.path(), &principal);
    assert!(output.stderr.is_empty() && said(&output).contains("123456789012:role/x"));
}

#[test]
fn templates_are_a_file_for_each_account() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("c.toml"), CONFIG).unwrap();
    for (format, suffix, says) in [
        ("cloudformation", "template.json", "AWSTemplateFormatVersion"),
        ("terraform", "tf", "required_providers"),
    ] {
        let args = ["policy", "-c", "c.toml", "--format", format];
        let several = shardwalker(at, &args);
        assert_eq!(several.status.code(), Some(2), "{several:?}");
        assert!(said(&several).contains("give --out DIRECTORY, or --side"), "{several:?}");
        let output = shardwalker(at, &[&args[..], &["--out", format]].concat());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(said(&output).lines().count(), 3);
        for account in ["111111111111", "222222222222", "999999999999"] {
            let text = std::fs::read_to_string(at.join(format).join(format!("{account}.{suffix}"))).unwrap();
            assert!(text.contains(says), "{text}");
            let side = shardwalker(at, &[&args[..], &["--side", account]].concat());
            assert_eq!(String::from_utf8_lossy(&side.stdout).trim_end(), text.trim_end());
        }
    }
}

/// AWS attaches ten managed policies to a role.
#[test]
fn more_policies_than_a_role_takes_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = "[state]\ntable = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"\n".to_owned();
    let name = "n".repeat(200);
    for index in 0..300 {
        config += &format!(
            "[[member]]\nname = \"m{index}\"\ntable = \"arn:aws:dynamodb:eu-west-1:111111111111:table/{name}{index}\"\n"
        );
        if index % 2 == 1 {
            let from = index - 1;
            config += &format!("[[route]]\nname = \"r{index}\"\nfrom = \"m{from}\"\nto = [\"m{index}\"]\n");
        }
    }
    std::fs::write(directory.path().join("c.toml"), config).unwrap();
    let output = shardwalker(directory.path(), &["policy", "-c", "c.toml"]);
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("arn:aws:iam::999999999999:role/shardwalker takes"), "{words}");
    assert!(words.contains("AWS attaches ten to a role"), "{words}");
    let one = shardwalker(directory.path(), &["policy", "-c", "c.toml", "--side", "111111111111"]);
    assert!(one.stderr.is_empty(), "it is not theirs: {one:?}");
}

#[test]
fn a_member_by_a_profile_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("name = \"orders\"", "name = \"orders\"\n    profile = \"elsewhere\"");
    std::fs::write(directory.path().join("c.toml"), config).unwrap();
    let output = shardwalker(directory.path(), &["policy", "-c", "c.toml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && words.contains("member orders is reached by the profile elsewhere"),
        "{words}"
    );
}

/// A document with one statement; `to` makes it a resource's.
fn statement(effect: &str, to: Option<&str>) -> Value {
    let mut statement = json!({"Effect": effect, "Action": "dynamodb:GetItem", "Resource": "*"});
    if let Some(to) = to {
        statement["Principal"] = json!({ "AWS": to });
    }
    json!({"Version": "2012-10-17", "Statement": [statement]})
}

struct Case<'a> {
    principal: &'a str,
    /// Effect of an identity policy, if there is one that says anything.
    identity: Option<&'a str>,
    /// Effect and principal of the resource's policy.
    resource: Option<(&'a str, &'a str)>,
    /// A permissions boundary: whether it allows, or is silent.
    boundary: Option<bool>,
    /// A session policy, likewise.
    session: Option<bool>,
    allowed: bool,
}

fn simulate(case: &Case<'_>) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let write = |name: &str, document: &Value| std::fs::write(at.join(name), document.to_string()).unwrap();
    let table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
    let mut args = vec!["policy", "simulate", "--principal", case.principal];
    args.extend(["--action", "dynamodb:GetItem", "--resource", table]);
    // A document that says nothing of the request is an implicit deny.
    write("silent.json", &json!({"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}));
    write("allow.json", &statement("Allow", None));
    match case.identity {
        Some(effect) => {
            write("identity.json", &statement(effect, None));
            args.push("identity.json");
        }
        None => args.push("silent.json"),
    }
    if let Some((effect, to)) = case.resource {
        write("resource.json", &statement(effect, Some(to)));
        args.push("resource.json");
    }
    for (flag, given) in [("--session", case.session), ("--boundary", case.boundary)] {
        match given {
            Some(true) => args.extend([flag, "allow.json"]),
            Some(false) => args.extend([flag, "silent.json"]),
            None => {}
        }
    }
    shardwalker(at, &args)
}

fn holds(cases: &[Case<'_>]) {
    for case in cases {
        let output = simulate(case);
        let Case { principal, identity, resource, boundary, session, allowed } = case;
        let what =
            format!("{principal} {identity:?} {resource:?} {boundary:?} {session:?}: {}", said(&output));
        assert_eq!(output.status.code(), Some(i32::from(!allowed)), "{what}");
    }
}

const USER: &str = "arn:aws:iam::111111111111:user/alice";
const ROLE: &str = "arn:aws:iam::111111111111:role/app";
const SESSION: &str = "arn:aws:sts::111111111111:assumed-role/app/one";
const FEDERATED: &str = "arn:aws:sts::111111111111:federated-user/fay";
const ROOT: &str = "arn:aws:iam::111111111111:root";
const STRANGER: &str = "arn:aws:iam::222222222222:role/app";

/// From the IAM user guide, "Evaluating identity-based policies with resource-based policies" (within an account
/// either allows) and "Cross-account policy evaluation logic" (both must).
#[test]
fn the_published_table_of_accounts_and_sides() {
    let effects = [None, Some("Allow"), Some("Deny")];
    let mut cases = Vec::new();
    for principal in [USER, STRANGER] {
        for identity in effects {
            for resource in effects {
                let allows = [identity, resource].iter().filter(|effect| **effect == Some("Allow")).count();
                let denied = [identity, resource].contains(&Some("Deny"));
                let needed = if principal == USER { 1 } else { 2 };
                cases.push(Case {
                    principal,
                    identity,
                    resource: resource.map(|effect| (effect, principal)),
                    boundary: None,
                    session: None,
                    allowed: !denied && allows >= needed,
                });
            }
        }
    }
    holds(&cases);
}

/// From the IAM user guide, "Resource-based policies and implicit denies in other policy types", in one account.
#[test]
fn the_published_table_of_principals_and_implicit_denies() {
    let row = |principal, to, boundary, session, allowed| Case {
        principal,
        identity: None,
        resource: Some(("Allow", to)),
        boundary,
        session,
        allowed,
    };
    holds(&[
        row(SESSION, ROLE, None, Some(false), false),
        row(SESSION, ROLE, Some(false), None, false),
        row(SESSION, ROLE, Some(false), Some(true), false),
        row(SESSION, ROLE, Some(true), Some(true), true),
        row(SESSION, SESSION, Some(false), Some(false), true),
        row(USER, USER, Some(false), None, true),
        row(FEDERATED, USER, Some(false), Some(false), false),
        row(FEDERATED, FEDERATED, Some(false), Some(false), true),
        row(ROOT, ROOT, None, None, true),
        // An account in the policy only delegates to the account's own policies.
        row(USER, "111111111111", None, None, false),
        row(USER, "222222222222", None, None, false),
    ]);
}

/// From "Permissions boundaries for IAM entities": what is allowed is what both allow, and across accounts what the resource
/// allows as well; a Deny wins there, too.
#[test]
fn boundaries_narrow_what_the_callers_own_policies_allow() {
    for principal in [USER, SESSION, STRANGER] {
        let resource = (principal == STRANGER).then_some(("Allow", principal));
        let row = |identity, boundary, session, allowed| Case {
            principal,
            identity,
            resource,
            boundary,
            session,
            allowed,
        };
        holds(&[
            row(Some("Allow"), Some(true), None, true),
            row(Some("Allow"), Some(false), None, false),
            row(None, Some(true), None, false),
            row(Some("Deny"), Some(true), None, false),
            row(Some("Allow"), Some(true), Some(true), true),
            row(Some("Allow"), Some(true), Some(false), false),
        ]);
    }
    let narrow = Case {
        principal: USER,
        identity: Some("Allow"),
        resource: None,
        boundary: Some(false),
        session: None,
        allowed: false,
    };
    let words = said(&simulate(&narrow));
    assert!(words.contains("because no permissions boundary allows the dynamodb:GetItem action"), "{words}");
}

#[test]
fn a_context_key_decides() {
    let directory = tempfile::tempdir().unwrap();
    let mut document = statement("Allow", Some(STRANGER));
    document["Statement"][0]["Condition"] = json!({"StringEquals": {"aws:SourceVpce": "vpce-1"}});
    std::fs::write(directory.path().join("resource.json"), document.to_string()).unwrap();
    std::fs::write(directory.path().join("own.json"), statement("Allow", None).to_string()).unwrap();
    let run = |vpce: &str| {
        let context = format!("aws:SourceVpce={vpce}");
        let table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
        let mut args = vec!["policy", "simulate", "--principal", STRANGER, "--action", "dynamodb:GetItem"];
        args.extend(["--resource", table, "--context", &context, "--json", "own.json", "resource.json"]);
        let output = shardwalker(directory.path(), &args);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, answer) = run("vpce-1");
    assert_eq!(
        (code, &answer["allowed"], &answer["by"][1]["file"]),
        (Some(0), &json!(true), &json!("resource.json"))
    );
    let (code, answer) = run("vpce-2");
    assert_eq!((code, &answer["allowed"]), (Some(1), &json!(false)));
    assert!(answer["message"].as_str().unwrap().contains("no resource-based policy allows"), "{answer}");
}

#[tokio::test]
async fn a_check_is_a_table_of_permissions() {
    let served = Served::new().await;
    let process = served.run("5s").await;
    // The health check of containers.
    for (args, says) in [(&["health"][..], "ok\n"), (&["health", "--ready"], "ready\n")] {
        let (code, out, said) = served.command(args).await;
        assert_eq!((code, out.as_str()), (0, says), "{args:?}: {said}");
    }
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
    assert_eq!(served.command(&["health"]).await.0, 2, "nobody is there");
    let (code, out, said) = served.command(&["check"]).await;
    assert_eq!(code, 0, "{out}{said}");
    assert!(out.contains("dynamodb:GetShardIterator  ok"), "{out}");
    assert!(
        out.contains("member source: ok (arn:aws:dynamodb:eu-west-1:111111111111:table/orders)"),
        "{out}"
    );
    let (code, out, _) = served.command(&["check", "--json", "--features", "verify"]).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    let scan = |name: &str| {
        let cells = report["permissions"].as_array().unwrap();
        let mut cells = cells.iter().filter(|c| c["member"] == name && c["action"] == "dynamodb:Scan");
        cells.next().unwrap()["verdict"].clone()
    };
    assert_eq!(scan("source"), "denied by identity");
    assert_eq!(
        report["findings"][0]["add"][0]["where"],
        "the identity policy of the role that makes the call"
    );

    let peer = &served.world.peers[0];
    served
        .world
        .sandbox
        .put_resource_policy(peer, &resource_policy(peer, &["DescribeTable", "PutItem"]))
        .unwrap();
    let (code, out, _) = served.command(&["check"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("dynamodb:DeleteItem        denied by resource"), "{out}");
    assert!(out.contains("member b: DeleteItem: AccessDeniedException"), "{out}");
    // Nothing was changed.
    for table in [&served.world.source, &served.world.peers[0], &served.world.peers[1]] {
        assert!(served.world.sandbox.items(table).unwrap().is_empty());
    }
    assert!(served.world.rows("shardwalker-probe").is_empty());
}
