//! Writers move there, back, there, and for good, with exactly the generated policies of a route with a way back: by
//! resource policies and by roles. What keeps writers out no policy of ours may attach; an administrator does.

use super::{PRINCIPAL, World};
use crate::sandbox_support::{Client, failure, s};
use crate::world::eventually;
use serde_json::{Value, json};
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::Attach;
use shardwalker::cutover::standing::Step;
use shardwalker::cutover::{Goal, Refusal, Report, cutover};
use shardwalker::service;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// How the two members are reached.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Shared,
    Roles,
}

fn config(way: Way) -> String {
    let role = |account: &str| match way {
        Way::Shared => String::new(),
        Way::Roles => format!("assume_role = {{ role = \"arn:aws:iam::{account}:role/in\" }}\n"),
    };
    let member = |name: &str, account: &str| {
        format!(
            "[[member]]\nname = \"{name}\"\ntable = \"arn:aws:dynamodb:eu-west-1:{account}:table/orders\"\n{}",
            role(account)
        )
    };
    format!(
        "access_patience = \"0ms\"\n[state]\ntable = \"state\"\nregion = \"eu-west-1\"\n[admin]\nlisten = \"off\"\n\
         [lease]\nduration = \"12s\"\n[write]\nrequest_timeout = \"4s\"\n{}{}\
         [[route]]\nname = \"copy\"\nfrom = \"a\"\nto = [\"b\"]\nreversible = true\n",
        member("a", "111111111111"),
        member("b", "222222222222"),
    )
}

impl World {
    async fn cutover(&self, goal: Goal, attach_deny: bool, writers_stopped: bool) -> Report {
        let request = shardwalker::cutover::Request {
            attach_deny,
            writers_stopped,
            principals: match self.config.members[0].access.assume_role {
                None => vec![PRINCIPAL.to_owned()],
                Some(_) => Vec::new(),
            },
            ..crate::cutover::request(goal)
        };
        let options = service::Options { create_state_table: false, ..self.options() };
        let mut tell = |_: &str| ();
        let run = cutover(self.config.clone(), request, options, CancellationToken::new(), &mut tell);
        Box::pin(run).await.unwrap_or_else(|error| panic!("{goal:?}: {error}"))
    }

    /// What a table's items hold, by their ids.
    fn values(&self, name: &str) -> Vec<(String, String)> {
        let items = self.sandbox.items(&self.table(name)).unwrap();
        let text = |value: &Value| value["S"].as_str().unwrap().to_owned();
        let mut values: Vec<_> = items.iter().map(|item| (text(&item["id"]), text(&item["value"]))).collect();
        values.sort();
        values
    }

    async fn until_same(&self, items: usize) {
        eventually("both sides hold the same", || {
            let values = self.values("a");
            values.len() == items && values == self.values("b")
        })
        .await;
    }

    /// How many leases of a route the state table has.
    fn leases(&self, route: &str) -> usize {
        let rows = self.sandbox.items("arn:aws:dynamodb:eu-west-1:999999999999:table/state").unwrap();
        let prefix = format!("lease#{route}#");
        rows.iter().filter(|row| row["pk"]["S"].as_str().unwrap().starts_with(&prefix)).count()
    }
}

/// The statement that a refusal asks an administrator to add.
fn statement(refusal: &Refusal) -> Value {
    let text = &refusal.remedy;
    let (begin, end) = (text.find('{').unwrap(), text.rfind('}').unwrap());
    serde_json::from_str(&text[begin..=end]).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An administrator of a table, who changes its policy, and its application.
struct Owner {
    client: Client,
    table: String,
    generated: Vec<Value>,
}

impl Owner {
    async fn policy(&self, more: Option<&Value>) {
        let statements: Vec<&Value> = self.generated.iter().chain(more).collect();
        if statements.is_empty() {
            self.client.db.delete_resource_policy().resource_arn(&self.table).send().await.unwrap();
            return;
        }
        let policy = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        self.client.db.put_resource_policy().resource_arn(&self.table).policy(policy).send().await.unwrap();
    }

    /// The code with which a write is refused.
    async fn refused(&self) -> String {
        let put = self.client.db.put_item().table_name("orders").item("id", s("late"));
        failure(put.send().await.unwrap_err()).0
    }
}

#[tokio::test(start_paused = true)]
async fn generated_policies_are_enough_to_move_writers_and_back() {
    for way in [Way::Shared, Way::Roles] {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut world = World::of(&config(way), Some(start));
        let features = [Feature::Cutover, Feature::Verify];
        // Once, for whoever makes the state table; and from then on without that.
        world.apply(&world.documents(&[&features[..], &[Feature::CreateStateTable]].concat()));
        world.start().await.stop().await.unwrap();
        let documents = world.documents(&features);
        world.apply(&documents);
        let owners = ["a", "b"].map(|name| {
            let arn = world.config.member(name).unwrap().arn.clone();
            let own = documents.iter().find(|document| document.attach == Attach::Table(arn.clone()));
            let statements = own.and_then(|document| document.policy["Statement"].as_array());
            let generated = statements.cloned().unwrap_or_default();
            Owner { client: world.app(name), table: arn.to_string(), generated }
        });
        let worker = world.start().await;
        for (turn, goal) in [Goal::Peer, Goal::Source, Goal::Peer].into_iter().enumerate() {
            let (live, other) = (&owners[turn % 2], &owners[(turn + 1) % 2]);
            let back = if goal == Goal::Peer { "copy/back" } else { "copy" };
            assert_eq!(
                world.leases(back) > 0,
                turn > 0,
                "{way:?}: there are leases to forget from the second on"
            );
            live.client.put("orders", &format!("k{turn}"), "before").await;
            live.client.put("orders", "k0", &format!("turn {turn}")).await;
            world.until_same(turn + 1).await;
            if way == Way::Roles && turn == 0 {
                // No feature's policy lets the replicator change a policy.
                let refused = world.cutover(goal, true, false).await.refused.unwrap();
                assert!(refused.remedy.contains("dynamodb:GetResourcePolicy"), "{refused:?}");
                live.policy(Some(&statement(&refused))).await;
            } else {
                let refused = world.cutover(goal, false, false).await.refused.unwrap();
                live.policy(Some(&statement(&refused))).await;
            }
            assert_eq!(live.refused().await, "AccessDeniedException", "{way:?}");
            let report = world.cutover(goal, false, true).await;
            assert_eq!(
                (report.refused, report.turn, report.step),
                (None, turn as u64 + 1, Step::Live),
                "{way:?}"
            );
            if turn > 0 {
                // Its administrator is told to take the statement out again.
                assert_eq!(other.refused().await, "AccessDeniedException");
                let told = report.done.iter().any(|line| line.contains("take it out again"));
                assert!(told, "{way:?}: {:?}", report.done);
            }
            other.policy(None).await;
        }
        owners[1].client.put("orders", "last", "at the peer").await;
        world.until_same(4).await;
        let report = world.cutover(Goal::Finish, false, false).await;
        assert_eq!((report.refused, report.step), (None, Step::Finished), "{way:?}");
        assert_eq!((world.leases("copy"), world.leases("copy/back")), (0, 0), "{way:?}");
        assert!(worker.problems().is_empty(), "{way:?}: {:?}", worker.problems());
        worker.stop().await.unwrap();
    }
}
