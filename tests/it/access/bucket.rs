//! Feeds in buckets: what is written for them is enough, and without any action of it the check names that one.

use super::{PRINCIPAL, World, actions, without};
use crate::world::eventually;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shardwalker::access::feeds;
use shardwalker::access::finding::Verdict as Seen;
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::{Attach, Document};
use shardwalker::access::preflight::Report;
use shardwalker::aws::Aws;
use shardwalker::iam::evaluate::{
    Named, Policies, Principal, PrincipalKind, Request as Asked, Verdict, evaluate,
};
use shardwalker::iam::policy::Policy;
use shardwalker::task::Tasks;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const ROLE: &str = "arn:aws:iam::666666666666:role/lake";

/// By the replicator's own role, and by one of the buckets' account.
fn config(endpoint: &str) -> String {
    format!(
        r#"
        access_patience = "0ms"
        [state]
        table = "state"
        region = "eu-west-1"
        [admin]
        listen = "off"
        [lease]
        duration = "12s"
        [write]
        request_timeout = "4s"
        [[member]]
        name = "source"
        table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
        [[feed]]
        name = "own"
        url = "s3://lake/own/orders"
        region = "eu-west-1"
        endpoint = "{endpoint}"
        compression = "none"
        roll_age = "1s"
        [[feed]]
        name = "theirs"
        url = "s3://lake/theirs"
        format = "parquet"
        roll_age = "1s"
        region = "eu-west-1"
        endpoint = "{endpoint}"
        assume_role = {{ role = "{ROLE}", external_id = "lake" }}
        [[route]]
        name = "copy"
        from = "source"
        to = ["own", "theirs"]
        "#
    )
}

/// Buckets that let in as S3 does, within the account of who asks.
#[derive(Default)]
struct Buckets {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// What the replicator's own role and the one that it assumes may do.
    policies: Mutex<BTreeMap<&'static str, Vec<Named>>>,
    /// Keys with this in them cannot be written just now.
    busy: Mutex<Option<&'static str>>,
    /// What was asked for and let in.
    used: Mutex<BTreeSet<(&'static str, &'static str)>>,
}

impl Buckets {
    fn apply(&self, documents: &[Document]) {
        let of = |role: &str| {
            let own = documents.iter().filter(|document| document.attach == Attach::Role(role.to_owned()));
            let policy = |document: &Document| Policy::parse(&document.policy.to_string()).unwrap();
            own.map(|document| Named { name: "own".into(), policy: Arc::new(policy(document)) }).collect()
        };
        *self.policies.lock().unwrap() = [PRINCIPAL, ROLE].map(|role| (role, of(role))).into();
    }

    /// Why it is not let in.
    fn refusal(&self, caller: &'static str, action: &'static str, resource: &str) -> Option<String> {
        let policies = self.policies.lock().unwrap();
        let account = caller.split(':').nth(4).unwrap().to_owned();
        let (kind, role) = match caller {
            ROLE => (PrincipalKind::RoleSession, Some(ROLE.to_owned())),
            _ => (PrincipalKind::User, None),
        };
        let principal = Principal { kind, account: account.clone(), arn: caller.to_owned(), role };
        let nothing = |_: &str| None;
        let asked = Asked {
            principal: &principal,
            action,
            resource,
            resource_account: &account,
            trust: false,
            context: &nothing,
        };
        let verdict: Verdict =
            evaluate(&asked, &Policies { identity: &policies[caller], ..Policies::default() });
        if verdict.is_allowed() {
            self.used.lock().unwrap().insert((caller, action));
        }
        verdict.denial(&asked)
    }

    fn keys(&self, within: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        objects.keys().filter(|key| key.contains(within)).cloned().collect()
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

async fn answer(State(buckets): State<Arc<Buckets>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let caller = if parts.headers.contains_key("x-amz-security-token") { ROLE } else { PRINCIPAL };
    let path = parts.uri.path().trim_start_matches('/').replace("%3D", "=");
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    let (root, within) = (format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/{key}"));
    let listing = parts.method == Method::GET && key.is_empty();
    let (action, resource) = match parts.method {
        _ if listing => ("s3:ListBucket", &root),
        Method::PUT => ("s3:PutObject", &within),
        Method::DELETE => ("s3:DeleteObject", &within),
        Method::GET | Method::HEAD => ("s3:GetObject", &within),
        other => panic!("{other} {}", parts.uri),
    };
    if let Some(why) = buckets.refusal(caller, action, resource) {
        return error(StatusCode::FORBIDDEN, "AccessDenied", &why);
    }
    let found = buckets.objects.lock().unwrap().get(key).cloned();
    let about = [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")];
    match (parts.method, found) {
        _ if listing => {
            let body =
                "<ListBucketResult><Name>lake</Name><IsTruncated>false</IsTruncated></ListBucketResult>";
            ([(header::CONTENT_TYPE, "application/xml")], body).into_response()
        }
        (Method::PUT, _) if buckets.busy.lock().unwrap().is_some_and(|busy| key.contains(busy)) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "Please reduce your request rate.")
        }
        (Method::PUT, _) => {
            buckets.objects.lock().unwrap().insert(key.to_owned(), body);
            (about, "").into_response()
        }
        (Method::DELETE, _) => {
            buckets.objects.lock().unwrap().remove(key);
            StatusCode::NO_CONTENT.into_response()
        }
        (_, Some(bytes)) => (about, bytes).into_response(),
        // Whether an object is there is told to who may list.
        (_, None) => match buckets.refusal(caller, "s3:ListBucket", &root) {
            None => error(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist."),
            Some(why) => error(StatusCode::FORBIDDEN, "AccessDenied", &why),
        },
    }
}

/// The world with its buckets, which live as long as the tasks.
async fn world() -> (World, Arc<Buckets>, Tasks<()>) {
    let buckets = Arc::new(Buckets::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&buckets));
    let mut serving = Tasks::new();
    serving.spawn(async move {
        axum::serve(listener, app).await.unwrap();
    });
    (World::of(&config(&endpoint), None), buckets, serving)
}

async fn checked(world: &World) -> Report {
    let mut report = world.check(&[]).await;
    let aws = Aws::new(world.base());
    Box::pin(feeds::check(&world.config, &aws, "1", &mut report)).await;
    report
}

#[tokio::test]
async fn every_action_on_a_bucket_is_needed() {
    let (mut world, buckets, _serving) = world().await;
    let documents = world.documents(&[]);
    world.apply(&world.documents(&[Feature::CreateStateTable]));
    world.start().await.stop().await.unwrap();
    world.apply(&documents);
    buckets.apply(&documents);
    let report = checked(&world).await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(report.cells.iter().all(|cell| cell.verdict == Seen::Allowed), "{:#?}", report.cells);
    assert!(buckets.keys("").is_empty(), "nothing is left behind");

    let mut tried = 0;
    for (index, document) in documents.iter().enumerate() {
        let trusts = document.attach == Attach::Trust(ROLE.to_owned());
        let of_feeds = |(_, resource, action): &(usize, Option<String>, String)| {
            action.starts_with("s3:") || trusts || resource.as_deref() == Some(ROLE)
        };
        for (statement, resource, action) in actions(&document.policy).into_iter().filter(of_feeds) {
            let mut less = documents.clone();
            less[index].policy = without(&document.policy, statement, resource.as_deref(), &action);
            buckets.apply(&less);
            world.apply(&less);
            let report = checked(&world).await;
            let assumes = action == "sts:AssumeRole";
            let (feed, place) = match &document.attach {
                Attach::Trust(role) => ("theirs", format!("the trust policy of {role}")),
                Attach::Role(role) if role == ROLE => ("theirs", format!("the identity policy of {role}")),
                _ if assumes => ("theirs", format!("the identity policy of {PRINCIPAL}")),
                _ => ("own", "the identity policy of the role that makes the call".to_owned()),
            };
            let what = format!("{feed} without {action} on {resource:?}: {report:#?}");
            let cell = report.cells.iter().find(|cell| cell.member == feed && cell.action == action);
            let expected = if assumes { Seen::Denied } else { Seen::DeniedByIdentity };
            assert_eq!(cell.unwrap_or_else(|| panic!("{what}")).verdict, expected, "{what}");
            let [finding] = report.findings.as_slice() else { panic!("{what}") };
            assert_eq!(finding.member, feed, "{what}");
            let add = finding.add.iter().find(|add| add.place == place);
            let add = add.unwrap_or_else(|| panic!("{place}: {what}"));
            assert!(add.statement["Action"].to_string().contains(&action), "{what}");
            assert_eq!(add.statement["Resource"].as_str(), resource.as_deref(), "{what}");
            buckets.objects.lock().unwrap().clear();
            tried += 1;
        }
    }
    assert_eq!(tried, 8 + 2, "what is done in two buckets, and both sides of the role");
}

/// A place that is not there is one finding, and no question of permissions.
#[tokio::test]
async fn a_bucket_that_cannot_be_reached_is_one_finding() {
    let (mut world, _, serving) = world().await;
    world.apply(&world.documents(&[Feature::CreateStateTable]));
    world.start().await.stop().await.unwrap();
    drop(serving);
    let report = checked(&world).await;
    for feed in ["own", "theirs"] {
        let of = |member: &str| member == feed;
        let findings: Vec<_> = report.findings.iter().filter(|finding| of(&finding.member)).collect();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert!(findings[0].add.is_empty() && findings[0].what.contains("cannot be used"), "{findings:#?}");
        let mut cells = report.cells.iter().filter(|cell| of(&cell.member) && cell.action.starts_with("s3:"));
        assert!(cells.all(|cell| matches!(cell.verdict, Seen::Unknown(_))), "{:#?}", report.cells);
    }
}

#[tokio::test]
async fn changes_and_snapshots_get_into_buckets_with_what_is_written() {
    let (mut world, buckets, _serving) = world().await;
    let documents = world.documents(&[Feature::CreateStateTable, Feature::Backfill]);
    world.apply(&documents);
    buckets.apply(&documents);
    let app = world.app("source");
    app.put("orders", "a", "1").await;
    world.backfill("copy").await;
    for place in ["own/orders/", "theirs/"] {
        assert!(!buckets.keys(place).is_empty(), "{place}: {:?}", buckets.keys(""));
    }
    let documents = world.documents(&[]);
    world.apply(&documents);
    buckets.apply(&documents);
    buckets.objects.lock().unwrap().clear();
    // A worker dies between a file and what tells of it, so the next one must look.
    *buckets.busy.lock().unwrap() = Some("_manifest/");
    let worker = world.start().await;
    app.put("orders", "b", "1").await;
    for place in ["own/orders/", "theirs/"] {
        eventually("the file is written", || !buckets.keys(place).is_empty()).await;
    }
    worker.kill().await;
    *buckets.busy.lock().unwrap() = None;
    let worker = world.start().await;
    for place in ["own/orders/", "theirs/"] {
        let told = || buckets.keys("_manifest/").iter().any(|key| key.starts_with(place));
        eventually("the file is told of", told).await;
    }
    assert!(worker.problems().is_empty(), "{:?}", worker.problems());
    worker.stop().await.unwrap();
    let used = buckets.used.lock().unwrap().clone();
    for role in [PRINCIPAL, ROLE] {
        for action in ["s3:PutObject", "s3:GetObject"] {
            assert!(used.contains(&(role, action)), "{action} is not used by {role}: {used:?}");
        }
    }
}
