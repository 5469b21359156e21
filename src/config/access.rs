//! How a table is reached: endpoint, profile, role. Refuses what cannot work for one client: an endpoint of
//! another Region than the table's, a role of another account.

use super::arn::RoleArn;
use super::endpoint::{Endpoint, Host, endpoint};
use super::report::Place;
use super::section::{Located, Section};
use super::values::{self, Fault, duration};
use super::{Access, AssumeRole};
use std::time::Duration;

/// What the top level sets for all tables.
pub(super) struct Defaults {
    pub(super) endpoint: Option<Located<Endpoint>>,
    pub(super) allow_http: bool,
}

/// The table that is reached, as far as it is known.
pub(super) struct Target {
    /// For messages: `member "orders"`.
    pub(super) whose: String,
    pub(super) region: Option<String>,
    /// Partition and account.
    pub(super) owner: Option<(String, String)>,
}

pub(super) struct AccessDraft {
    /// `None` when the Region is unknown, which is reported elsewhere.
    pub(super) access: Option<Access>,
    /// Where the endpoint is set, if it is one of AWS's own.
    pub(super) aws_endpoint: Option<Place>,
}

/// Reads `endpoint`, `profile` and `assume_role` of a section; `role_title` is the latter's title.
pub(super) fn access(
    section: &mut Section<'_>,
    role_title: &'static str,
    defaults: &Defaults,
    target: &Target,
) -> AccessDraft {
    let own = section.optional("endpoint", endpoint(defaults.allow_http));
    let endpoint = own.as_ref().or(defaults.endpoint.as_ref());
    if let Some(endpoint) = endpoint {
        check_region(section, "endpoint", endpoint, target);
    }
    let profile = section.optional("profile", values::profile).map(|profile| profile.value);
    let custom = endpoint.map(|endpoint| &endpoint.value).filter(|endpoint| endpoint.host == Host::Custom);
    let assume_role = section
        .optional_table("assume_role", role_title)
        .and_then(|role| assume_role(role, defaults, target, custom));
    AccessDraft {
        access: target.region.clone().map(|region| Access {
            region,
            endpoint: endpoint.map(|endpoint| endpoint.value.url.clone()),
            streams_endpoint: None,
            profile,
            assume_role,
        }),
        aws_endpoint: endpoint.filter(|endpoint| endpoint.value.host != Host::Custom).map(|aws| aws.place),
    }
}

/// `None` when a problem was reported. `custom` is the table's endpoint when it is not one of AWS's.
fn assume_role(
    mut section: Section<'_>,
    defaults: &Defaults,
    target: &Target,
    custom: Option<&Endpoint>,
) -> Option<AssumeRole> {
    let role =
        section.required("role", "the role's ARN, \"arn:aws:iam::ACCOUNT:role/NAME\"", values::role_arn);
    if let Some(role) = &role {
        check_owner(&section, role, target);
    }
    let external_id = section.optional("external_id", values::external_id).map(|id| id.value);
    let session_name = section.or("session_name", "shardwalker".to_owned(), values::session_name);
    let session = section.or(
        "duration",
        Duration::from_hours(1),
        duration(Duration::from_mins(15)..=Duration::from_hours(12)),
    );
    let sts = section.optional("sts_endpoint", endpoint(defaults.allow_http));
    if let Some(sts) = &sts {
        check_region(&section, "sts_endpoint", sts, target);
    }
    section.finish();
    Some(AssumeRole {
        role_arn: role?.value.text,
        external_id,
        session_name: session_name?.value,
        duration: session?.value,
        sts_endpoint: sts.as_ref().map(|sts| &sts.value).or(custom).map(|endpoint| endpoint.url.clone()),
    })
}

/// An endpoint of AWS must be of the table's Region: a client signs for one Region.
pub(super) fn check_region(section: &Section<'_>, key: &str, endpoint: &Located<Endpoint>, target: &Target) {
    if let (Host::Aws(Some(found)), Some(wanted)) = (&endpoint.value.host, &target.region)
        && found != wanted
    {
        let fault = Fault::new(format!("is of Region {found}, but {} is in {wanted}", target.whose));
        section.report(key, endpoint.place, fault.remedy(format!("use an endpoint of {wanted}")));
    }
}

/// The role must be of the table's account: from there on the table is its own.
fn check_owner(section: &Section<'_>, role: &Located<RoleArn>, target: &Target) {
    let Some((partition, account)) = &target.owner else { return };
    let RoleArn { partition: found_partition, account: found, .. } = &role.value;
    if found != account {
        let fault = Fault::new(format!("is of account {found}, but {} is in {account}", target.whose));
        section.report("role", role.place, fault.remedy(format!("give a role of account {account}")));
    } else if found_partition != partition {
        let fault =
            Fault::new(format!("is of partition {found_partition}, but {} is in {partition}", target.whose));
        section.report("role", role.place, fault);
    }
}
