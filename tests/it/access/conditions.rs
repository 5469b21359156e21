//! Documents with conditions let in whoever fulfils them, and nobody else; and the check says that a condition may be why.

use super::{HOME, World};
use shardwalker::access::finding::Verdict;
use shardwalker::access::policy::Terms;
use shardwalker::access::preflight::Report;
use shardwalker::aws::Base;
use shardwalker::sandbox::gateway::Source;

/// What the check finds by requests from somewhere.
async fn from(world: &World, ip: &str, endpoint: Option<&str>) -> Report {
    let source = Source { ip: ip.parse().unwrap(), vpce: endpoint.map(str::to_owned) };
    let http = Some(world.sandbox.http_client_from(source));
    world.check_by(Base { http, ..world.base() }, &[]).await
}

fn nothing(report: &Report) {
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let short: Vec<_> = report.cells.iter().filter(|cell| cell.verdict != Verdict::Allowed).collect();
    assert!(short.is_empty(), "{short:#?}");
}

/// How the first action on each member, and on the state table, is judged.
fn verdicts(report: &Report) -> Vec<(&str, &'static str)> {
    let mut first: Vec<(&str, &'static str)> = Vec::new();
    for cell in &report.cells {
        let action = cell.action == "dynamodb:DescribeTable" || cell.verdict != Verdict::Allowed;
        if action && first.iter().all(|(member, _)| *member != cell.member) {
            first.push((&cell.member, cell.verdict.name()));
        }
    }
    first
}

/// Of a world whose state table is there.
async fn world() -> World {
    let mut world = World::new();
    world.apply(&world.documents(&[shardwalker::access::needs::Feature::CreateStateTable]));
    world.start().await.stop().await.unwrap();
    world
}

const BY_BOTH: [(&str, &str); 6] = [
    ("source", "denied by resource"),
    ("shared", "denied by resource"),
    ("by-role", "denied by identity"),
    ("carts-shared", "denied by resource"),
    ("carts-by-role", "denied by identity"),
    ("state table", "ok"),
];

#[tokio::test(start_paused = true)]
async fn a_vpc_endpoint() {
    let mut world = world().await;
    let endpoints = vec!["vpce-1".to_owned(), "vpce-2".to_owned()];
    world.apply(&world.written(Terms { endpoints, ..Terms::default() }));
    for endpoint in ["vpce-1", "vpce-2"] {
        nothing(&from(&world, "10.0.0.1", Some(endpoint)).await);
    }
    for endpoint in [None, Some("vpce-3")] {
        let report = from(&world, "10.0.0.1", endpoint).await;
        assert_eq!(verdicts(&report), BY_BOTH, "through {endpoint:?}");
        let hint = "one of its conditions does not hold: organization, VPC endpoint, network";
        assert!(
            report.findings.iter().all(|finding| finding.remedy.contains(hint)),
            "{:#?}",
            report.findings
        );
    }
}

/// Roles cannot even be assumed from elsewhere: STS sees the address, too.
#[tokio::test(start_paused = true)]
async fn a_network() {
    let mut world = world().await;
    let networks = vec!["192.0.2.0/24".to_owned(), "2001:db8::/32".to_owned()];
    world.apply(&world.written(Terms { networks, ..Terms::default() }));
    for ip in ["192.0.2.7", "2001:db8::7"] {
        nothing(&from(&world, ip, None).await);
    }
    let by_role = BY_BOTH.map(|(member, verdict)| match verdict {
        "denied by identity" => (member, "denied"),
        verdict => (member, verdict),
    });
    assert_eq!(verdicts(&from(&world, "192.0.3.7", None).await), by_role);
    // Through an endpoint a request has no address.
    assert_eq!(verdicts(&from(&world, "192.0.2.7", Some("vpce-1")).await), by_role);
}

#[tokio::test(start_paused = true)]
async fn an_organization() {
    let mut world = world().await;
    let organization = Some("o-ours".to_owned());
    world.apply(&world.written(Terms { organization, ..Terms::default() }));
    let by_role = BY_BOTH.map(|(member, verdict)| match verdict {
        "denied by identity" => (member, "denied"),
        verdict => (member, verdict),
    });
    assert_eq!(verdicts(&world.check(&[]).await), by_role, "an account of none");
    world.sandbox.join_organization(HOME, "o-theirs").unwrap();
    assert_eq!(verdicts(&world.check(&[]).await), by_role);
    world.sandbox.join_organization(HOME, "o-ours").unwrap();
    nothing(&world.check(&[]).await);
}
