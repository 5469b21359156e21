//! What feeds need of their places: the statements that allow it, and trying it without leaving anything behind.

use super::finding::{Cell, Finding, Verdict};
use super::preflight::Report;
use crate::aws::Aws;
use crate::config::{Config, Feed, FeedPlace};
use crate::failure::{Class, Failure};
use crate::feed::store::Store;

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

/// Tries to write, read, list and delete at each feed's place, and adds what came of it.
pub async fn check(config: &Config, aws: &Aws, id: &str, report: &mut Report) {
    for feed in used(config).filter(|feed| feed.place != FeedPlace::Stdout) {
        let tried = async { Store::open(feed, aws).await?.probe(id).await };
        let (verdict, finding) = match tried.await {
            Ok(()) => (Verdict::Allowed, None),
            Err(failure) => judge(feed, &failure),
        };
        let action = match feed.place {
            FeedPlace::S3 { .. } => "s3:PutObject, GetObject, ListBucket, DeleteObject",
            _ => "write, read, list, delete",
        };
        report.cells.push(Cell { member: feed.name.clone(), action: action.to_owned(), verdict });
        report.findings.extend(finding);
    }
}

fn judge(feed: &Feed, failure: &Failure) -> (Verdict, Option<Finding>) {
    let verdict = match failure.class {
        Class::Denied => Verdict::Denied,
        _ => Verdict::Unknown(failure.code.to_string()),
    };
    let remedy = match (&feed.place, failure.class) {
        (FeedPlace::S3 { .. }, Class::Denied) => {
            "allow it in the identity policy (shardwalker policy writes the statements) and in the bucket's policy"
        }
        (FeedPlace::S3 { .. }, Class::Credentials) => Class::Credentials.remedy(),
        (FeedPlace::S3 { .. }, _) => "check the bucket's name, its Region and the endpoint",
        (FeedPlace::Gcs { .. }, Class::Denied) => {
            "give the service account roles/storage.objectUser on the bucket"
        }
        (FeedPlace::Azure { .. }, Class::Denied) => {
            "give the identity Storage Blob Data Contributor on the container"
        }
        (FeedPlace::Gcs { .. } | FeedPlace::Azure { .. }, _) => {
            "check the names in the url, and that this process has credentials for it"
        }
        (FeedPlace::Files(_) | FeedPlace::Stdout, _) => "check that the directory may be written",
    };
    let what = format!("its place cannot be used: {failure}");
    (verdict, Some(Finding::new(&feed.name, None, what, remedy)))
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
}
