//! What feeds need of their places: the statements that allow it, and trying it without leaving anything behind.

use super::finding::{Addition, Cell, Finding, Verdict, caller, not_assumed, spell, verdict_of};
use super::preflight::Report;
use super::statement::identity;
use crate::aws::Aws;
use crate::config::{Access, Config, Feed, FeedPlace};
use crate::failure::{Class, Failure};
use crate::feed::store::{DEEDS, Deed, Store};
use serde_json::json;

/// Actions on a resource.
pub(super) type Statement = (Vec<String>, String);

/// The feeds that routes lead to.
pub(super) fn used(config: &Config) -> impl Iterator<Item = &Feed> {
    let named = |index: &usize| config.routes.iter().any(|route| route.feeds.contains(index));
    config.feeds.iter().enumerate().filter(move |(index, _)| named(index)).map(|(_, feed)| feed)
}

/// What an identity policy says for a bucket. Without `s3:ListBucket`, S3 answers that a missing object is denied.
pub(super) fn statements(partition: &str, bucket: &str, prefix: &str) -> Vec<Statement> {
    let root = format!("arn:{partition}:s3:::{bucket}");
    let within = if prefix.is_empty() { root.clone() } else { format!("{root}/{prefix}") };
    let actions = |names: &[&str]| names.iter().map(|name| format!("s3:{name}")).collect();
    vec![
        (actions(&["GetObject", "PutObject"]), format!("{within}/*")),
        (actions(&["ListBucket"]), root),
        (actions(&["DeleteObject"]), format!("{within}/_probe/*")),
    ]
}

/// What assuming a role takes.
const ASSUME: &str = "sts:AssumeRole";

/// The action that S3 has for a deed.
const fn action(deed: Deed) -> &'static str {
    match deed {
        Deed::Write => "s3:PutObject",
        Deed::Read => "s3:GetObject",
        Deed::List => "s3:ListBucket",
        Deed::Delete => "s3:DeleteObject",
    }
}

/// Tries to write, read, list and delete at each feed's place, and adds what came of it.
pub async fn check(config: &Config, aws: &Aws, id: &str, report: &mut Report) {
    for feed in used(config).filter(|feed| feed.place != FeedPlace::Stdout) {
        let tried = async { Store::open(feed, aws).await?.probe(id).await };
        let outcomes = tried.await.unwrap_or_else(|failure| DEEDS.map(|_| Err(failure.clone())));
        match &feed.place {
            FeedPlace::S3 { bucket, prefix, access } => {
                let partition = config.members.first().map_or("aws", |member| &member.arn.partition);
                let statements = statements(partition, bucket, prefix);
                let (cells, findings) = in_bucket(&feed.name, access, &statements, outcomes);
                report.cells.extend(cells);
                report.findings.extend(findings);
            }
            place => {
                let (verdict, finding) = match outcomes.into_iter().find_map(Result::err) {
                    None => (Verdict::Allowed, None),
                    Some(failure) => {
                        (unlike(&failure), Some(unusable(&feed.name, &failure, remedy(place, failure.class))))
                    }
                };
                let action = "write, read, list, delete".to_owned();
                report.cells.push(Cell { member: feed.name.clone(), action, verdict });
                report.findings.extend(finding);
            }
        }
    }
}

/// A cell for each action, a finding for each that is denied, and one for all that fails by something else.
fn in_bucket(
    name: &str,
    access: &Access,
    statements: &[Statement],
    outcomes: [Result<(), Failure>; DEEDS.len()],
) -> (Vec<Cell>, Vec<Finding>) {
    let (mut cells, mut findings, mut other) = (Vec::new(), Vec::new(), None);
    let denied =
        |outcome: &Result<(), Failure>| outcome.as_ref().is_err_and(|failure| failure.class == Class::Denied);
    // Without an object, and without leave to list, S3 does not say which of the two is why nothing can be read.
    let [written, _, listed, _] = &outcomes;
    let unsure = written.is_err() && denied(listed);
    let mut unassumed = false;
    if let Some(role) = &access.assume_role {
        let why = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
        let verdict = match why.filter(|failure| failure.class == Class::Credentials) {
            None => Verdict::Allowed,
            Some(failure) if failure.message.contains(ASSUME) => {
                unassumed = true;
                findings.push(not_assumed(name, role, &failure.to_string()));
                Verdict::Denied
            }
            Some(failure) => unlike(failure),
        };
        cells.push(Cell { member: name.to_owned(), action: ASSUME.to_owned(), verdict });
    }
    for (deed, outcome) in DEEDS.into_iter().zip(&outcomes) {
        let verdict = match outcome {
            Ok(()) => Verdict::Allowed,
            Err(failure) if deed == Deed::Read && unsure && failure.class == Class::Denied => {
                Verdict::Unknown("there is nothing to read, and that is told only to who may list".to_owned())
            }
            Err(failure) if failure.class == Class::Denied => {
                findings.push(refused(name, deed, access, statements, failure));
                verdict_of(&failure.message)
            }
            Err(failure) => {
                other.get_or_insert_with(|| failure.clone());
                unlike(failure)
            }
        };
        cells.push(Cell { member: name.to_owned(), action: action(deed).to_owned(), verdict });
    }
    findings.extend(other.filter(|_| !unassumed).map(|failure| {
        let remedy = match failure.class {
            Class::Credentials => Class::Credentials.remedy(),
            _ => "check the bucket's name, its Region and the endpoint",
        };
        unusable(name, &failure, remedy)
    }));
    (cells, findings)
}

fn unlike(failure: &Failure) -> Verdict {
    match failure.class {
        Class::Denied => Verdict::Denied,
        _ => Verdict::Unknown(failure.to_string()),
    }
}

/// An action that is denied, with the statement that allows it.
fn refused(name: &str, deed: Deed, access: &Access, statements: &[Statement], failure: &Failure) -> Finding {
    let action = action(deed);
    let verdict = verdict_of(&failure.message);
    let holds =
        |(actions, _): &&Statement| verdict != Verdict::Forbidden && actions.iter().any(|own| own == action);
    let addition = |(actions, resource): &Statement| {
        let mut statement = json!({ "Effect": "Allow", "Action": actions, "Resource": resource });
        let place = if verdict == Verdict::DeniedByResource {
            statement["Principal"] = json!({ "AWS": caller(&failure.message) });
            "the policy of the bucket".to_owned()
        } else {
            identity(access)
        };
        Addition { place, statement }
    };
    let add: Vec<Addition> = statements.iter().filter(holds).map(addition).collect();
    let remedy = match verdict {
        Verdict::Forbidden => {
            "a Deny statement forbids it, in the bucket's policy or another; no Allow can override that: remove or narrow it"
                .to_owned()
        }
        Verdict::DeniedByResource => spell(&add),
        _ => format!("{}\n(a bucket of another account must allow it in its own policy, too)", spell(&add)),
    };
    let call = action.split(':').nth(1).map(Into::into);
    Finding { call, add, ..Finding::new(name, None, failure.to_string(), remedy) }
}

fn unusable(name: &str, failure: &Failure, remedy: &str) -> Finding {
    Finding::new(name, None, format!("its place cannot be used: {failure}"), remedy)
}

fn remedy(place: &FeedPlace, class: Class) -> &'static str {
    match (place, class) {
        (FeedPlace::Gcs { .. }, Class::Denied) => {
            "give the service account roles/storage.objectUser on the bucket"
        }
        (FeedPlace::Azure { .. }, Class::Denied) => {
            "give the identity Storage Blob Data Contributor on the container"
        }
        (FeedPlace::Gcs { .. } | FeedPlace::Azure { .. }, _) => {
            "check the names in the url, and that this process has credentials for it"
        }
        (FeedPlace::S3 { .. } | FeedPlace::Files(_) | FeedPlace::Stdout, _) => {
            "check that the directory may be written"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_opened_no_wider_than_the_prefix() {
        let statements = statements("aws", "lake", "orders");
        let resources: Vec<&str> = statements.iter().map(|(_, resource)| resource.as_str()).collect();
        assert_eq!(
            resources,
            ["arn:aws:s3:::lake/orders/*", "arn:aws:s3:::lake", "arn:aws:s3:::lake/orders/_probe/*"]
        );
        assert_eq!(statements[2].0, ["s3:DeleteObject"]);
    }

    #[test]
    fn a_denial_is_answered_where_it_comes_from() {
        let access = Access {
            region: "eu-west-1".into(),
            endpoint: None,
            streams_endpoint: None,
            profile: None,
            assume_role: None,
        };
        let statements = statements("aws", "lake", "orders");
        let role = "arn:aws:iam::999999999999:role/shardwalker";
        let judge = |why: &str| {
            let user =
                "User: arn:aws:sts::999999999999:assumed-role/shardwalker/task is not authorized to perform";
            let message =
                format!("403 Forbidden: <Message>{user}: s3:PutObject on resource: \"x\" {why}</Message>");
            let denied = Err(Failure::new(Class::Denied, "PermissionDenied", message));
            let (cells, mut findings) =
                in_bucket("lake", &access, &statements, [denied, Ok(()), Ok(()), Ok(())]);
            assert_eq!((cells.len(), findings.len()), (4, 1));
            (cells[0].verdict.clone(), findings.remove(0))
        };
        let (verdict, finding) = judge("because no identity-based policy allows the s3:PutObject action");
        assert_eq!(verdict, Verdict::DeniedByIdentity);
        assert_eq!(finding.add[0].statement.get("Principal"), None);
        let (verdict, finding) = judge("because no resource-based policy allows the s3:PutObject action");
        assert_eq!(verdict, Verdict::DeniedByResource);
        assert_eq!(finding.add[0].place, "the policy of the bucket");
        assert_eq!(finding.add[0].statement["Principal"]["AWS"], role);
        let (verdict, finding) = judge("with an explicit deny in a resource-based policy");
        assert_eq!(verdict, Verdict::Forbidden);
        assert!(finding.add.is_empty() && finding.remedy.contains("a Deny statement"), "{finding}");
        let (verdict, finding) = judge("");
        assert_eq!((verdict, finding.add.len()), (Verdict::Denied, 1));
    }

    #[test]
    fn every_action_that_is_tried_is_written() {
        let statements = statements("aws", "lake", "orders");
        let mut written: Vec<&String> = statements.iter().flat_map(|(actions, _)| actions).collect();
        let mut tried = DEEDS.map(action);
        written.sort();
        tried.sort_unstable();
        assert_eq!(written, tried);
    }
}
