//! What must hold before a group may run: streams, permissions, keys and numbers; and what is said when it does not.

use crate::sandbox_support::Client;
use crate::world::{HOME, PRINCIPAL, REGION, resource_policy};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};
use shardwalker::access::preflight::Preflight;
use shardwalker::aws::{Aws, Base};
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::numbers::NumberError;
use shardwalker::retry::Jitter;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service, ServiceError};
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// The members' names, and their accounts.
const MEMBERS: [(&str, &str); 4] =
    [("a", "111111111111"), ("b", "222222222222"), ("c", "333333333333"), ("d", "444444444444")];
/// What a member's table must allow.
const ACTIONS: [&str; 5] = ["DescribeTable", "PutItem", "UpdateItem", "DeleteItem", "GetItem"];

/// Tables in accounts of their own, with exactly the policies that a group needs.
struct Tables {
    sandbox: Sandbox,
    arns: Vec<String>,
    keys: Credentials,
}

impl Tables {
    fn new() -> Self {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let sandbox = Sandbox::new(Options { start: Some(start), ..Options::default() }).unwrap();
        let keys = sandbox.user(HOME, "replicator", &identity_policy()).unwrap();
        let mut tables = Self { sandbox, arns: Vec::new(), keys };
        for (_, account) in MEMBERS {
            let arn = tables.create(account, &["id"], "NEW_AND_OLD_IMAGES");
            tables.arns.push(arn);
        }
        tables
    }

    fn create(&self, account: &str, keys: &[&str], view: &str) -> String {
        let arn = self.sandbox.create_table(account, REGION, "carts", keys, Some(view)).unwrap();
        self.allow(&arn, &ACTIONS);
        let stream = self.sandbox.stream_arn(&arn).unwrap().unwrap();
        self.allow(&stream, &["DescribeStream", "GetRecords", "GetShardIterator"]);
        arn
    }

    fn allow(&self, arn: &str, actions: &[&str]) {
        self.sandbox.put_resource_policy(arn, &resource_policy(arn, actions)).unwrap();
    }

    /// Another table of the same name in place of a member's.
    async fn replace(&self, index: usize, keys: &[&str], view: &str) {
        let account = MEMBERS[index].1;
        let admin = Client::admin(&self.sandbox, account);
        admin.db.delete_table().table_name("carts").send().await.unwrap();
        self.create(account, keys, view);
    }

    /// A group of members, by index, with these numbers.
    fn config(&self, numbers: &[(usize, u8)]) -> Config {
        let names: Vec<String> =
            numbers.iter().map(|(index, _)| format!("{:?}", MEMBERS[*index].0)).collect();
        let mut text = format!(
            "access_patience = \"3s\"\n[state]\ntable = \"shardwalker-state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [[group]]\nname = \"carts\"\nmembers = [{}]\n",
            names.join(", ")
        );
        for (index, number) in numbers {
            let (name, arn) = (MEMBERS[*index].0, &self.arns[*index]);
            text += &format!("[[member]]\nname = \"{name}\"\ntable = \"{arn}\"\nnumber = {number}\n");
        }
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn base(&self) -> Base {
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        }
    }

    async fn build(&self, numbers: &[(usize, u8)]) -> Result<Service, ServiceError> {
        let options = service::Options {
            base: self.base(),
            create_state_table: true,
            clock: Clock::starting_at(self.sandbox.clock().now()),
            seed: 1,
        };
        Service::build(self.config(numbers), options, CancellationToken::new()).await
    }

    /// What a start says when it fails for what it found of the tables.
    async fn complaint(&self, numbers: &[(usize, u8)]) -> String {
        match self.build(numbers).await {
            Err(ServiceError::Access(findings)) => findings.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it started"),
        }
    }

    /// The registry: sort keys, and what they hold.
    fn registry(&self) -> Vec<(String, String)> {
        let state = format!("arn:aws:dynamodb:{REGION}:{HOME}:table/shardwalker-state");
        let mut rows = self.sandbox.items(&state).unwrap();
        rows.retain(|row| row["pk"]["S"] == "group#carts");
        let text = |value: &Value| value["S"].as_str().unwrap_or_default().to_owned();
        let row = |row: &Value| (text(&row["sk"]), text(&row["table"]) + &text(&row["number"]));
        let mut rows: Vec<_> = rows.iter().map(row).collect();
        rows.sort();
        rows
    }

    /// What the registry should hold.
    fn registered(&self, numbers: &[(usize, u8)]) -> Vec<(String, String)> {
        let numbers = numbers.iter().map(|(index, number)| (&self.arns[*index], format!("{number:02x}")));
        let rows = |(arn, digits): (&String, String)| {
            [(format!("number#{digits}"), arn.clone()), (format!("table#{arn}"), digits)]
        };
        let mut rows: Vec<_> = numbers.flat_map(rows).collect();
        rows.sort();
        rows
    }
}

fn identity_policy() -> String {
    let actions = |names: &[&str]| names.iter().map(|name| format!("dynamodb:{name}")).collect::<Vec<_>>();
    let read = actions(&["DescribeStream", "GetRecords", "GetShardIterator"]);
    json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:*:table/carts", "Action": actions(&ACTIONS) },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:*:table/carts/stream/*", "Action": read },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:999999999999:table/shardwalker-state",
          "Action": "dynamodb:*" },
    ]})
    .to_string()
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_of_a_member_is_named_with_the_whole_statement() {
    let tables = Tables::new();
    for without in ["PutItem", "UpdateItem", "DeleteItem", "GetItem"] {
        let left: Vec<&str> = ACTIONS.into_iter().filter(|action| *action != without).collect();
        tables.allow(&tables.arns[1], &left);
        let said = tables.complaint(&[(0, 1), (1, 2)]).await;
        assert!(said.starts_with(&format!("member b: {without}: AccessDenied")), "{said}");
        assert!(said.contains("add to the resource policy of the table, in account 222222222222"), "{said}");
        assert_eq!(said.matches("AccessDenied").count(), 1, "{said}");
        let statement = said.lines().find(|line| line.trim().starts_with('{')).unwrap();
        let statement: Value = serde_json::from_str(statement).unwrap();
        let actions = ["DescribeTable", "GetItem", "PutItem", "UpdateItem", "DeleteItem"]
            .map(|name| format!("dynamodb:{name}"));
        assert_eq!(statement["Action"], json!(actions));
        assert_eq!(statement["Principal"]["AWS"], PRINCIPAL);
        assert_eq!(statement["Resource"], tables.arns[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_probes_of_a_group_change_nothing() {
    let tables = Tables::new();
    Client::admin(&tables.sandbox, MEMBERS[0].1).put("carts", "shardwalker-probe", "mine").await;
    let before = tables.sandbox.items(&tables.arns[0]).unwrap();
    drop(tables.build(&[(0, 1), (1, 2)]).await.unwrap());
    assert_eq!(tables.sandbox.items(&tables.arns[0]).unwrap(), before);
    assert!(tables.sandbox.items(&tables.arns[1]).unwrap().is_empty());
    let counts = tables.sandbox.counters().snapshot();
    for operation in ["PutItem", "UpdateItem", "DeleteItem", "GetItem"] {
        assert!(counts[operation].contains_key(MEMBERS[1].1), "{operation} was tried");
    }
    for (index, written) in [(0, 1), (1, 0)] {
        let admin = Client::admin(&tables.sandbox, MEMBERS[index].1);
        let records = admin.all_records(&tables.sandbox, &tables.arns[index]).await;
        assert_eq!(records.len(), written, "{records:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_needs_both_images() {
    let tables = Tables::new();
    let numbers = [(0, 1), (1, 2)];
    for (view, lacks) in
        [("NEW_IMAGE", "no old images; group carts needs both"), ("KEYS_ONLY", "no new images")]
    {
        tables.replace(1, &["id"], view).await;
        let said = tables.complaint(&numbers).await;
        let expected =
            format!("member b: DescribeTable: the stream's view type is {view}, which has {lacks}\n");
        assert!(said.starts_with(&expected), "{said}");
        assert!(
            said.contains("turn the stream off") && said.contains("on again with NEW_AND_OLD_IMAGES"),
            "{said}"
        );
    }
    tables.replace(1, &["id"], "NEW_AND_OLD_IMAGES").await;
    tables.build(&numbers).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_with_another_key_is_named_once() {
    let tables = Tables::new();
    tables.replace(1, &["id", "sort"], "NEW_AND_OLD_IMAGES").await;
    let said = tables.complaint(&[(0, 1), (1, 2), (2, 3)]).await;
    assert_eq!(
        said,
        "member b: its primary key is id (S), sort (S), but that of a is id (S)\n  \
         the tables of group carts must have the same key attributes, by name and type"
    );
}

#[tokio::test(start_paused = true)]
async fn a_number_is_kept_for_its_table_for_ever() {
    let tables = Tables::new();
    let refusal = async |numbers: &[(usize, u8)]| match tables.build(numbers).await {
        Err(ServiceError::Number(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it started"),
    };
    tables.build(&[(0, 1), (1, 2), (2, 30)]).await.unwrap();
    let kept = tables.registered(&[(0, 1), (1, 2), (2, 30)]);
    assert_eq!(tables.registry(), kept);
    // Again, and without one of them: nothing is forgotten.
    tables.build(&[(0, 1), (1, 2), (2, 30)]).await.unwrap();
    tables.build(&[(0, 1), (1, 2)]).await.unwrap();
    assert_eq!(tables.registry(), kept);
    let taken = refusal(&[(0, 1), (1, 2), (3, 30)]).await;
    let (c, d) = (&tables.arns[2], &tables.arns[3]);
    assert_eq!(
        taken.to_string(),
        format!(
            "group carts: member d ({d}) has number 30, which belongs to {c} for ever, because versions of its \
             writes are in the tables; use a number that was never used: set number = 31 for d"
        )
    );
    let renumbered = refusal(&[(0, 1), (1, 3)]).await;
    assert!(matches!(renumbered, NumberError::Renumbered { number: 3, had: 2, .. }), "{renumbered:?}");
    assert_eq!(tables.registry(), kept);
    // A check says so before anything is started.
    for (numbers, says) in [([(0, 1), (1, 2)], ""), ([(0, 1), (1, 3)], &*renumbered.to_string())] {
        let (config, aws) = (tables.config(&numbers), Aws::new(tables.base()));
        let (jitter, cancel) = (Jitter::seeded(1), CancellationToken::new());
        let preflight = Preflight::new(&config, &aws, &jitter, &cancel);
        let clock = Clock::starting_at(tables.sandbox.clock().now());
        let report = Box::pin(preflight.report(&BTreeSet::new(), clock)).await;
        let found: Vec<String> = report.findings.into_iter().map(|finding| finding.what).collect();
        assert_eq!(found.concat(), says);
    }
    // The new one with the number that was proposed, and the old one back with its own.
    tables.build(&[(0, 1), (3, 31), (2, 30)]).await.unwrap();
    assert_eq!(tables.registry(), tables.registered(&[(0, 1), (1, 2), (2, 30), (3, 31)]));
}

#[tokio::test(start_paused = true)]
async fn of_two_workers_that_start_together_one_gets_the_number() {
    // The same numbers, which suit both; one number for two tables; two numbers for one table.
    for (first, second, refusals) in [((2, 3), (2, 3), 0), ((2, 3), (3, 3), 1), ((2, 3), (2, 4), 1)] {
        let tables = Tables::new();
        tables.build(&[(0, 1), (1, 2)]).await.unwrap();
        // Both look before either writes.
        tables.sandbox.faults().add(Rule::new(Effect::DelayMs(500)).operation("TransactWriteItems"));
        let (first, second) = ([(0, 1), (1, 2), first], [(0, 1), (1, 2), second]);
        let (one, other) = tokio::join!(tables.build(&first), tables.build(&second));
        let refused: Vec<_> = [one, other].into_iter().filter_map(Result::err).collect();
        assert!(refused.iter().all(|error| matches!(error, ServiceError::Number(_))), "{refused:?}");
        assert_eq!(refused.len(), refusals, "{refused:?}");
        let kept = [tables.registered(&first), tables.registered(&second)];
        assert!(kept.contains(&tables.registry()), "{:?}", tables.registry());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_take_a_number_from_its_table() {
    let tables = Tables::new();
    for effect in [Effect::DropAnswer, Effect::DropRequest] {
        tables.sandbox.faults().add(Rule::new(effect).operation("TransactWriteItems").times(1));
    }
    tables.build(&[(0, 1), (1, 2)]).await.unwrap();
    assert_eq!(tables.registry(), tables.registered(&[(0, 1), (1, 2)]));
}
