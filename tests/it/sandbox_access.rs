//! Who may do what: identity and resource policies over every kind of principal, in AWS's words.

use crate::sandbox_support::*;
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use serde_json::{Value, json};
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::gateway::Source;
use shardwalker::sandbox::iam::Credentials;
use std::time::Duration;

fn policy(statements: Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

/// One statement of an identity policy.
fn may(effect: &str, actions: Value, resource: &str) -> Value {
    json!({"Effect": effect, "Action": actions, "Resource": resource})
}

/// One statement of a resource policy.
fn grants(effect: &str, to: Value, actions: Value) -> Value {
    json!({"Effect": effect, "Principal": {"AWS": to}, "Action": actions, "Resource": "*"})
}

const NOTHING: &str = r#"{"Version":"2012-10-17","Statement":[]}"#;
const ALL: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#;

async fn get(client: &Client, table: &str) -> Result<(), (String, String)> {
    let get = client.db.get_item().table_name(table).key("id", s("1"));
    get.send().await.map(drop).map_err(failure)
}

/// The keys of a session.
fn keys(from: &aws_sdk_sts::types::Credentials) -> Credentials {
    Credentials {
        access_key_id: from.access_key_id().into(),
        secret_access_key: from.secret_access_key().into(),
        session_token: Some(from.session_token().into()),
        expires_ms: None,
    }
}

async fn assume(client: &Client, role: &str, session: &str) -> Result<Credentials, (String, String)> {
    let call = client.sts.assume_role().role_arn(role).role_session_name(session);
    let answer = call.send().await.map_err(failure)?;
    Ok(keys(answer.credentials().unwrap()))
}

fn trusts(principal: &str) -> String {
    policy(json!([{"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"}]))
}

#[tokio::test(start_paused = true)]
async fn the_nine_cells_of_identity_and_resource() {
    let effects = [None, Some("Allow"), Some("Deny")];
    for account in [A, B] {
        for identity in effects {
            for resource in effects {
                let sandbox = sandbox();
                let table = orders(&sandbox);
                let statements: Vec<_> =
                    identity.iter().map(|effect| may(effect, json!("dynamodb:GetItem"), &table)).collect();
                let user = sandbox.user(account, "alice", &policy(json!(statements))).unwrap();
                if let Some(effect) = resource {
                    let alice = json!(format!("arn:aws:iam::{account}:user/alice"));
                    let statement = grants(effect, alice, json!("dynamodb:GetItem"));
                    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
                }
                let answer = get(&Client::new(&sandbox, &user), &table).await;
                let expected = match (account == A, identity, resource) {
                    (_, Some("Deny"), _) => Err("with an explicit deny in an identity-based policy"),
                    (_, _, Some("Deny")) => Err("with an explicit deny in a resource-based policy"),
                    (true, Some("Allow"), _) | (true, _, Some("Allow")) => Ok(()),
                    (false, Some("Allow"), Some("Allow")) => Ok(()),
                    (_, None, _) => {
                        Err("because no identity-based policy allows the dynamodb:GetItem action")
                    }
                    _ => Err("because no resource-based policy allows the dynamodb:GetItem action"),
                };
                let cell = format!("account {account}: identity {identity:?}, resource {resource:?}");
                match (answer, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err((code, message)), Err(because)) => {
                        assert_eq!(code, "AccessDeniedException", "{cell}");
                        let arn = format!("arn:aws:iam::{account}:user/alice");
                        let words = format!(
                            "User: {arn} is not authorized to perform: dynamodb:GetItem on resource: {table} \
                             {because}"
                        );
                        assert_eq!(message, words, "{cell}");
                    }
                    (answer, expected) => panic!("{cell}: {answer:?}, expected {expected:?}"),
                }
            }
        }
    }
}

/// Alice of account B and a role of B that she may assume, both allowed everything by their identity.
async fn principals(sandbox: &Sandbox) -> (Client, Client) {
    let alice = Client::new(sandbox, &sandbox.user(B, "alice", ALL).unwrap());
    let role = sandbox.role(B, "app", &trusts(B), ALL).unwrap();
    let session = assume(&alice, &role, "one").await.unwrap();
    (alice, Client::new(sandbox, &session))
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_principal_is_matched_and_no_other() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let (alice, session) = principals(&sandbox).await;
    let federated = alice.sts.get_federation_token().name("fay").policy(ALL).send().await.unwrap();
    let federated = Client::new(&sandbox, &keys(federated.credentials().unwrap()));
    // principal, and whether it reaches alice, the role's session, the federated user
    for (principal, expected) in [
        (B.to_owned(), [true, true, true]),
        (format!("arn:aws:iam::{B}:root"), [true, true, true]),
        (format!("arn:aws:iam::{B}:user/alice"), [true, false, false]),
        (format!("arn:aws:iam::{B}:role/app"), [false, true, false]),
        (format!("arn:aws:sts::{B}:assumed-role/app/one"), [false, true, false]),
        (format!("arn:aws:sts::{B}:assumed-role/app/two"), [false, false, false]),
        (format!("arn:aws:sts::{B}:federated-user/fay"), [false, false, true]),
        (C.to_owned(), [false, false, false]),
    ] {
        let statement = grants("Allow", json!(principal), json!("dynamodb:GetItem"));
        sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
        let mut reached = [false; 3];
        for (reached, client) in reached.iter_mut().zip([&alice, &session, &federated]) {
            *reached = get(client, &table).await.is_ok();
        }
        assert_eq!(reached, expected, "{principal}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_user_may_get_items_and_nothing_else() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let alice = Client::new(&sandbox, &sandbox.user(B, "alice", ALL).unwrap());
    let bob = Client::new(&sandbox, &sandbox.user(B, "bob", ALL).unwrap());
    let statement = grants("Allow", json!(format!("arn:aws:iam::{B}:user/alice")), json!("dynamodb:GetItem"));
    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
    get(&alice, &table).await.unwrap();
    assert_eq!(get(&bob, &table).await.unwrap_err().0, "AccessDeniedException");
    let put = alice.db.put_item().table_name(&table).item("id", s("1")).send().await.unwrap_err();
    assert_eq!(failure(put).0, "AccessDeniedException");
    let scan = alice.db.scan().table_name(&table).send().await.unwrap_err();
    assert_eq!(failure(scan).0, "AccessDeniedException");
}

#[tokio::test(start_paused = true)]
async fn a_role_reads_the_stream_of_another_account() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    Client::admin(&sandbox, A).put(&table, "1", "a").await;
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let (_, reader) = principals(&sandbox).await;
    let describe = || reader.streams.describe_stream().stream_arn(&stream).send();
    assert_eq!(failure(describe().await.unwrap_err()).0, "AccessDeniedException");

    let actions = json!(["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]);
    let statement = grants("Allow", json!(format!("arn:aws:iam::{B}:role/app")), actions);
    sandbox.put_resource_policy(&stream, &policy(json!([statement]))).unwrap();
    describe().await.unwrap();
    assert_eq!(reader.all_records(&sandbox, &table).await.len(), 1);

    assert!(get(&reader, &table).await.is_err(), "the stream's policy is not the table's");
    let list = reader.streams.list_streams().table_name(&table).send().await;
    assert_eq!(failure(list.unwrap_err()).0, "AccessDeniedException", "no policy covers ListStreams");
}

#[tokio::test(start_paused = true)]
async fn what_resource_policies_do_not_cover_is_refused_across_accounts() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let statement = grants("Allow", json!(B), json!("dynamodb:*"));
    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
    let other = Client::admin(&sandbox, B);
    get(&other, &table).await.unwrap();
    let refused = [
        failure(other.db.update_table().table_name(&table).send().await.unwrap_err()),
        failure(other.db.delete_table().table_name(&table).send().await.unwrap_err()),
        failure(other.db.describe_time_to_live().table_name(&table).send().await.unwrap_err()),
        failure(other.db.get_resource_policy().resource_arn(&table).send().await.unwrap_err()),
        failure(other.db.delete_resource_policy().resource_arn(&table).send().await.unwrap_err()),
    ];
    for (code, message) in refused {
        assert_eq!(code, "AccessDeniedException", "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn leading_keys_and_attributes_narrow_a_query() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let alice = Client::new(&sandbox, &sandbox.user(B, "alice", ALL).unwrap());
    let mut statement = grants("Allow", json!(B), json!(["dynamodb:Query", "dynamodb:GetItem"]));
    statement["Condition"] = json!({
        "ForAllValues:StringEquals": {
            "dynamodb:LeadingKeys": ["alice"],
            "dynamodb:Attributes": ["id", "value"],
        },
        "StringEqualsIfExists": {"dynamodb:Select": "SPECIFIC_ATTRIBUTES"},
    });
    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
    let query = |key: &str, projection: Option<&str>| {
        let query = alice.db.query().table_name(&table).key_condition_expression("id = :id");
        query
            .expression_attribute_values(":id", s(key))
            .set_projection_expression(projection.map(String::from))
    };
    query("alice", Some("id")).send().await.unwrap();
    for (key, projection) in [("bob", Some("id")), ("alice", Some("id, secret")), ("alice", None)] {
        let error = query(key, projection).send().await.unwrap_err();
        assert_eq!(failure(error).0, "AccessDeniedException", "{key} {projection:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_request_comes_from_counts() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let user = sandbox.user(B, "alice", ALL).unwrap();
    let from = |ip: &str, vpce: Option<&str>| {
        let source = Source { ip: ip.parse().unwrap(), vpce: vpce.map(String::from) };
        Client::from(&sandbox, &user, source)
    };
    let mut statement = grants("Allow", json!(B), json!("dynamodb:GetItem"));
    statement["Condition"] = json!({"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}});
    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
    get(&from("192.0.2.7", None), &table).await.unwrap();
    get(&from("198.51.100.7", None), &table).await.unwrap_err();

    let mut deny = grants("Deny", json!("*"), json!("dynamodb:*"));
    deny["Condition"] = json!({"StringNotEquals": {"aws:SourceVpce": "vpce-1"}});
    let allow = grants("Allow", json!(B), json!("dynamodb:GetItem"));
    sandbox.put_resource_policy(&table, &policy(json!([allow, deny]))).unwrap();
    get(&from("10.0.0.1", Some("vpce-1")), &table).await.unwrap();
    for outside in [from("10.0.0.1", Some("vpce-2")), from("192.0.2.7", None)] {
        let (_, message) = get(&outside, &table).await.unwrap_err();
        assert!(message.ends_with("with an explicit deny in a resource-based policy"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_organization_may_be_let_in() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    sandbox.join_organization(B, "o-one").unwrap();
    let mut statement = grants("Allow", json!("*"), json!("dynamodb:GetItem"));
    statement["Condition"] = json!({"StringEquals": {"aws:PrincipalOrgID": "o-one"}});
    sandbox.put_resource_policy(&table, &policy(json!([statement]))).unwrap();
    get(&Client::admin(&sandbox, B), &table).await.unwrap();
    get(&Client::admin(&sandbox, C), &table).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn public_policies_are_refused() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let everybody = || grants("Allow", json!("*"), json!("dynamodb:GetItem"));
    let with = |condition: Value| {
        let mut statement = everybody();
        statement["Condition"] = condition;
        policy(json!([statement]))
    };
    for public in [
        policy(json!([everybody()])),
        policy(json!([{"Effect": "Allow", "Principal": "*", "Action": "dynamodb:*", "Resource": "*"}])),
        with(json!({"StringLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/app"}})),
        with(json!({"StringNotEquals": {"aws:PrincipalAccount": B}})),
        with(json!({"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}})),
    ] {
        for resource in [&table, &stream] {
            let error = sandbox.put_resource_policy(resource, &public).unwrap_err();
            assert!(error.message.contains("public access"), "{public}: {error}");
        }
    }
    for narrow in [
        with(json!({"StringEquals": {"aws:PrincipalAccount": B}})),
        with(json!({"StringEquals": {"aws:SourceVpce": "vpce-1"}})),
        policy(json!([grants("Deny", json!("*"), json!("dynamodb:*"))])),
    ] {
        sandbox.put_resource_policy(&table, &narrow).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_streams_policy_does_not_pass_to_its_successor() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let owner = Client::admin(&sandbox, A);
    let other = Client::admin(&sandbox, B);
    let first = sandbox.stream_arn(&table).unwrap().unwrap();
    let allowed = policy(json!([grants("Allow", json!(B), json!("dynamodb:DescribeStream"))]));
    owner.db.put_resource_policy().resource_arn(&first).policy(&allowed).send().await.unwrap();
    let turn = |on: bool| {
        let body = match on {
            true => json!({"StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES"}),
            false => json!({"StreamEnabled": false}),
        };
        let body = json!({"TableName": "orders", "StreamSpecification": body});
        sandbox.call(A, REGION, "UpdateTable", body).unwrap()
    };
    turn(false);
    turn(true);
    let second = sandbox.stream_arn(&table).unwrap().unwrap();
    assert_ne!(first, second);
    let describe = |arn: &str| other.streams.describe_stream().stream_arn(arn).send();
    describe(&first).await.unwrap();
    assert_eq!(failure(describe(&second).await.unwrap_err()).0, "AccessDeniedException");
    let get = owner.db.get_resource_policy().resource_arn(&second).send().await.unwrap_err();
    assert_eq!(failure(get).0, "PolicyNotFoundException");
    sandbox.advance(Duration::from_secs(24 * 3600));
    assert_eq!(
        failure(owner.streams.describe_stream().stream_arn(&first).send().await.unwrap_err()).0,
        "ResourceNotFoundException",
        "a stream that is off is gone after a day"
    );
}

#[tokio::test(start_paused = true)]
async fn policies_have_revisions_and_a_size() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let owner = Client::admin(&sandbox, A);
    let text = policy(json!([grants("Allow", json!(B), json!("dynamodb:GetItem"))]));
    let put = |expected: &str| {
        let put = owner.db.put_resource_policy().resource_arn(&table).policy(&text);
        put.expected_revision_id(expected).send()
    };
    let revision = put("NO_POLICY").await.unwrap().revision_id.unwrap();
    assert_eq!(failure(put("NO_POLICY").await.unwrap_err()).0, "PolicyNotFoundException");
    let second = put(&revision).await.unwrap().revision_id.unwrap();
    let got = owner.db.get_resource_policy().resource_arn(&table).send().await.unwrap();
    assert_eq!((got.policy(), got.revision_id()), (Some(text.as_str()), Some(second.as_str())));
    owner.db.delete_resource_policy().resource_arn(&table).send().await.unwrap();
    let gone = owner.db.get_resource_policy().resource_arn(&table).send().await.unwrap_err();
    assert_eq!(failure(gone).0, "PolicyNotFoundException");

    let big = format!("{text}{}", " ".repeat(20 * 1024 - text.len()));
    sandbox.put_resource_policy(&table, &big).unwrap();
    let error = sandbox.put_resource_policy(&table, &format!("{big} ")).unwrap_err();
    assert!(error.message.contains("20480"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_external_id_is_demanded() {
    let sandbox = sandbox();
    let trust = policy(json!([{
        "Effect": "Allow", "Principal": {"AWS": A}, "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": "secret"}},
    }]));
    let role = sandbox.role(B, "peer", &trust, ALL).unwrap();
    let caller = Client::admin(&sandbox, A);
    let assume = |id: Option<&str>| {
        let call = caller.sts.assume_role().role_arn(&role).role_session_name("shardwalker");
        call.set_external_id(id.map(String::from)).send()
    };
    for wrong in [None, Some("guess")] {
        let (code, message) = failure(assume(wrong).await.unwrap_err());
        assert_eq!(code, "AccessDenied");
        assert!(
            message.contains(&format!("is not authorized to perform: sts:AssumeRole on resource: {role}"))
        );
    }
    let answer = assume(Some("secret")).await.unwrap();
    let session = Client::new(&sandbox, &keys(answer.credentials().unwrap()));
    let identity = session.sts.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some("arn:aws:sts::222222222222:assumed-role/peer/shardwalker"));
    assert_eq!(identity.account(), Some(B));
}

#[tokio::test(start_paused = true)]
async fn who_may_assume_a_role() {
    let sandbox = sandbox();
    let admin = Client::admin(&sandbox, A);
    let powerless = Client::new(&sandbox, &sandbox.user(A, "alice", NOTHING).unwrap());
    let account_trusted = sandbox.role(A, "by-account", &trusts(A), ALL).unwrap();
    let user_trusted =
        sandbox.role(A, "by-user", &trusts("arn:aws:iam::111111111111:user/alice"), ALL).unwrap();
    let stranger_trusted = sandbox.role(A, "by-stranger", &trusts(C), ALL).unwrap();
    assume(&admin, &account_trusted, "one").await.unwrap();
    assume(&powerless, &account_trusted, "one").await.unwrap_err();
    assume(&powerless, &user_trusted, "one").await.unwrap();
    assume(&admin, &stranger_trusted, "one").await.unwrap_err();
    let root = Client::new(&sandbox, &sandbox.account(A).unwrap());
    assume(&root, &account_trusted, "one").await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn sessions_expire_and_chained_ones_last_an_hour() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let admin = Client::admin(&sandbox, A);
    let role = sandbox.role(A, "app", &trusts(A), ALL).unwrap();
    let session = Client::new(&sandbox, &assume(&admin, &role, "one").await.unwrap());
    let chain = |seconds: i32| {
        let call = session.sts.assume_role().role_arn(&role).role_session_name("two");
        call.duration_seconds(seconds).send()
    };
    chain(3600).await.unwrap();
    assert_eq!(failure(chain(3601).await.unwrap_err()).0, "ValidationError");
    get(&session, &table).await.unwrap();
    sandbox.advance(Duration::from_secs(3600));
    assert_eq!(get(&session, &table).await.unwrap_err().0, "ExpiredTokenException");
}

#[tokio::test(start_paused = true)]
async fn a_session_policy_only_narrows() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let admin = Client::admin(&sandbox, A);
    let role = sandbox.role(A, "app", &trusts(A), ALL).unwrap();
    let narrow = policy(json!([may("Allow", json!("dynamodb:Scan"), "*")]));
    let call = admin.sts.assume_role().role_arn(&role).role_session_name("one").policy(&narrow);
    let answer = call.send().await.unwrap();
    let session = Client::new(&sandbox, &keys(answer.credentials().unwrap()));
    session.db.scan().table_name(&table).send().await.unwrap();
    let (_, message) = get(&session, &table).await.unwrap_err();
    assert!(message.ends_with("because no session policy allows the dynamodb:GetItem action"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn signatures_are_checked() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let good = sandbox.admin(A, "admin").unwrap();
    let forged = Credentials { secret_access_key: "guess".into(), ..good.clone() };
    let error = get(&Client::new(&sandbox, &forged), &table).await.unwrap_err();
    assert_eq!(error.0, "InvalidSignatureException");
    let unknown = Credentials { access_key_id: "AKIANOBODY".into(), ..good.clone() };
    let error = get(&Client::new(&sandbox, &unknown), &table).await.unwrap_err();
    assert_eq!(error.0, "UnrecognizedClientException");
    let unsigned = http::Request::post("/").header("x-amz-target", "DynamoDB_20120810.ListTables");
    let answer = sandbox.handle(unsigned.body("{}".into()).unwrap(), Source::default()).await.unwrap();
    assert!(String::from_utf8_lossy(answer.body()).contains("MissingAuthenticationTokenException"));

    let lenient = with(|options| options.verify_signatures = false);
    let table = orders(&lenient);
    let key = lenient.admin(A, "admin").unwrap().access_key_id;
    get(&Client::new(&lenient, &Credentials { access_key_id: key, ..forged }), &table).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_arrive_late() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let other = Client::admin(&sandbox, B);
    sandbox.faults().delay_policies(Duration::from_secs(5));
    let allowed = policy(json!([grants("Allow", json!(B), json!("dynamodb:GetItem"))]));
    sandbox.put_resource_policy(&table, &allowed).unwrap();
    get(&other, &table).await.unwrap_err();
    tokio::time::advance(Duration::from_secs(5)).await;
    get(&other, &table).await.unwrap();
    sandbox.call(A, REGION, "DeleteResourcePolicy", json!({"ResourceArn": table})).unwrap();
    get(&other, &table).await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    get(&other, &table).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn an_iterator_of_another_account_needs_its_streams_policy() {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    let owner = Client::admin(&sandbox, A);
    let latest = owner.streams.get_shard_iterator().stream_arn(&stream).shard_id(&shard);
    let answer = latest.shard_iterator_type(ShardIteratorType::Latest).send().await.unwrap();
    let iterator = answer.shard_iterator.unwrap();
    let other = Client::admin(&sandbox, B);
    let error = other.streams.get_records().shard_iterator(iterator).send().await.unwrap_err();
    assert_eq!(failure(error).0, "AccessDeniedException");
}
