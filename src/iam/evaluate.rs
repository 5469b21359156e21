//! AWS's policy evaluation, as a pure function: who may do what to which resource, and which statement says so.
//!
//! Owns the order of the rules (a deny on any side wins; within an account the identity or the resource policy
//! allows; across accounts both must; a permissions boundary and a session policy only narrow) and AWS's words for a denial. Leaves to
//! others: which policies are in effect, and the request's context.

use super::condition::Context;
use super::pattern::Pattern;
use super::policy::{Effect, Patterns, Policy, Principals, Statement};
use std::fmt;
use std::sync::Arc;

/// What kind of principal calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrincipalKind {
    /// The account's root user.
    Root,
    /// An IAM user.
    User,
    /// A session of a role.
    RoleSession,
    /// A federated user (GetFederationToken).
    FederatedUser,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The kind.
    pub kind: PrincipalKind,
    /// The account that it belongs to.
    pub account: String,
    /// Its ARN; of a role session, the session's.
    pub arn: String,
    /// The role's ARN, of a role session.
    pub role: Option<String>,
}

impl Principal {
    /// The value of `aws:PrincipalArn`: the role's ARN for its sessions.
    #[must_use]
    pub fn principal_arn(&self) -> &str {
        self.role.as_deref().unwrap_or(&self.arn)
    }
}

/// A policy with the name by which a verdict refers to it.
#[derive(Debug, Clone)]
pub struct Named {
    /// The policy's name.
    pub name: String,
    /// The document.
    pub policy: Arc<Policy>,
}

/// The policies that bear on a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policies<'a> {
    /// Of the user or role.
    pub identity: &'a [Named],
    /// The permissions boundary of the user or role; `None` when there is none, which does not narrow.
    pub boundary: Option<&'a [Named]>,
    /// Passed when the session was made; `None` when none was, which does not narrow.
    pub session: Option<&'a [Named]>,
    /// Of the resource.
    pub resource: Option<&'a Named>,
}

/// A request to be judged.
pub struct Request<'a> {
    /// Who calls.
    pub principal: &'a Principal,
    /// Such as `dynamodb:GetItem`.
    pub action: &'a str,
    /// The resource's ARN.
    pub resource: &'a str,
    /// The account that owns the resource.
    pub resource_account: &'a str,
    /// Whether the resource's policy must allow even within one account, as a role's trust policy must.
    pub trust: bool,
    /// The context keys.
    pub context: &'a Context<'a>,
}

/// The side that a policy belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller's own policies.
    Identity,
    /// What bounds the caller's own policies.
    Boundary,
    /// The policy of the caller's session.
    Session,
    /// The resource's policy.
    Resource,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "identity-based policy",
            Self::Boundary => "permissions boundary",
            Self::Session => "session policy",
            Self::Resource => "resource-based policy",
        })
    }
}

/// Where a deciding statement stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRef {
    /// The side of its policy.
    pub side: Side,
    /// The policy's name.
    pub policy: String,
    /// The statement's position in the policy, from 0.
    pub index: usize,
    /// Its `Sid`.
    pub sid: Option<String>,
}

/// The outcome for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed by these statements; none for the account's root user in its own account.
    Allowed(Vec<StatementRef>),
    /// Denied by a statement.
    Denied(StatementRef),
    /// Denied because no statement of a side that must allow does.
    NotAllowed(Side),
}

impl Verdict {
    /// Whether the request may go on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// AWS's words for a denial; `None` when allowed.
    #[must_use]
    pub fn denial(&self, request: &Request<'_>) -> Option<String> {
        let Request { principal, action, resource, .. } = request;
        let because = match self {
            Self::Allowed(_) => return None,
            Self::Denied(by) if by.side == Side::Identity => {
                format!("with an explicit deny in an {}", by.side)
            }
            Self::Denied(by) => format!("with an explicit deny in a {}", by.side),
            Self::NotAllowed(side) => format!("because no {side} allows the {action} action"),
        };
        let arn = &principal.arn;
        Some(format!("User: {arn} is not authorized to perform: {action} on resource: {resource} {because}"))
    }
}

/// How a resource policy's allow reaches the caller; later ones count for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// It names the caller's account, which may then allow its own.
    Account,
    /// It names the role: its boundary and the session's policy still narrow.
    Role,
    /// It names the caller itself, or everybody.
    Direct,
}

/// Judges a request.
#[must_use]
pub fn evaluate(request: &Request<'_>, policies: &Policies<'_>) -> Verdict {
    let resource = policies.resource.map(std::slice::from_ref).unwrap_or_default();
    let session = policies.session.unwrap_or_default();
    let boundary = policies.boundary.unwrap_or_default();
    for (side, set) in [
        (Side::Identity, policies.identity),
        (Side::Boundary, boundary),
        (Side::Session, session),
        (Side::Resource, resource),
    ] {
        if let Some((by, _)) = find(request, side, set, Effect::Deny) {
            return Verdict::Denied(by);
        }
    }

    let by_identity = find(request, Side::Identity, policies.identity, Effect::Allow).map(|found| found.0);
    let by_boundary = find(request, Side::Boundary, boundary, Effect::Allow).map(|found| found.0);
    let by_session = find(request, Side::Session, session, Effect::Allow).map(|found| found.0);
    let by_resource = find(request, Side::Resource, resource, Effect::Allow);
    let root = request.principal.kind == PrincipalKind::Root;
    // What narrows, and does not allow.
    let narrowed = match () {
        () if policies.boundary.is_some() && by_boundary.is_none() => Some(Side::Boundary),
        () if policies.session.is_some() && by_session.is_none() => Some(Side::Session),
        () => None,
    };
    let same_account = request.principal.account == request.resource_account;

    if same_account {
        match &by_resource {
            Some((by, Reach::Direct)) => return Verdict::Allowed(vec![by.clone()]),
            Some((by, Reach::Role)) => {
                let by = [Some(by.clone()), by_boundary, by_session].into_iter().flatten().collect();
                return narrowed.map_or(Verdict::Allowed(by), Verdict::NotAllowed);
            }
            Some((_, Reach::Account)) | None => {}
        }
    }
    if !root && by_identity.is_none() {
        return Verdict::NotAllowed(Side::Identity);
    }
    if let Some(side) = narrowed {
        return Verdict::NotAllowed(side);
    }
    if (!same_account || request.trust) && by_resource.is_none() {
        return Verdict::NotAllowed(Side::Resource);
    }
    let by_resource = by_resource.filter(|_| !same_account || request.trust).map(|found| found.0);
    Verdict::Allowed([by_identity, by_boundary, by_session, by_resource].into_iter().flatten().collect())
}

/// The statement with this effect that reaches the caller furthest, the first of those.
fn find(request: &Request<'_>, side: Side, set: &[Named], effect: Effect) -> Option<(StatementRef, Reach)> {
    let mut best: Option<(StatementRef, Reach)> = None;
    for named in set {
        for (index, statement) in named.policy.statements.iter().enumerate() {
            if statement.effect != effect {
                continue;
            }
            let Some(reach) = applies(request, side, statement) else { continue };
            if best.as_ref().is_none_or(|(_, so_far)| reach > *so_far) {
                let sid = statement.sid.clone();
                best = Some((StatementRef { side, policy: named.name.clone(), index, sid }, reach));
            }
        }
    }
    best
}

fn applies(request: &Request<'_>, side: Side, statement: &Statement) -> Option<Reach> {
    let reach = match (&statement.principals, side) {
        (Some(principals), Side::Resource) => reach(principals, request.principal)?,
        (None, Side::Resource) => return None,
        _ => Reach::Direct,
    };
    let action = request.action.to_ascii_lowercase();
    let acts = any(&statement.actions, |pattern| Pattern::plain(pattern).matches(&action));
    // Without one, only the policy of a resource means something: that resource.
    let on = statement.resources.as_ref().map_or(side == Side::Resource, |resources| {
        any(resources, |pattern| {
            Pattern::read(pattern, request.context)
                .is_some_and(|pattern| pattern.matches_resource(request.resource))
        })
    });
    (acts && on && statement.conditions.iter().all(|condition| condition.holds(request.context)))
        .then_some(reach)
}

fn any(patterns: &Patterns, matches: impl Fn(&str) -> bool) -> bool {
    patterns.any_of.iter().any(|pattern| matches(pattern)) != patterns.negated
}

fn reach(principals: &Principals, caller: &Principal) -> Option<Reach> {
    let names_account = |name: &str| {
        let root = match name.splitn(6, ':').collect::<Vec<_>>().as_slice() {
            ["arn", _, "iam", "", account, "root"] => Some(*account),
            _ => None,
        };
        name == caller.account || root == Some(&caller.account)
    };
    let reach_of = |name: &str| {
        if name == "*" || name == caller.arn {
            Some(Reach::Direct)
        } else if Some(name) == caller.role.as_deref() {
            Some(Reach::Role)
        } else if names_account(name) {
            Some(if caller.kind == PrincipalKind::Root { Reach::Direct } else { Reach::Account })
        } else {
            None
        }
    };
    if !principals.negated {
        return principals.aws.iter().filter_map(|name| reach_of(name)).max();
    }
    // NotPrincipal spares only a caller whose account, role and session are all listed.
    let listed = |wanted: Reach| principals.aws.iter().any(|name| reach_of(name) == Some(wanted));
    let spared = listed(Reach::Direct)
        && (caller.kind == PrincipalKind::Root || listed(Reach::Account))
        && (caller.role.is_none() || listed(Reach::Role));
    (!spared).then_some(Reach::Direct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TABLE: &str = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
    const ROLE: &str = "arn:aws:iam::111111111111:role/app";

    fn policy(name: &str, statements: Value) -> Named {
        let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        Named { name: name.into(), policy: Arc::new(Policy::parse(&document).unwrap()) }
    }

    fn user(account: &str) -> Principal {
        let arn = format!("arn:aws:iam::{account}:user/alice");
        Principal { kind: PrincipalKind::User, account: account.into(), arn, role: None }
    }

    fn session() -> Principal {
        Principal {
            kind: PrincipalKind::RoleSession,
            account: "111111111111".into(),
            arn: "arn:aws:sts::111111111111:assumed-role/app/one".into(),
            role: Some(ROLE.into()),
        }
    }

    fn judge(principal: &Principal, policies: &Policies<'_>) -> Verdict {
        let context = |_: &str| None;
        let request = Request {
            principal,
            action: "dynamodb:GetItem",
            resource: TABLE,
            resource_account: "111111111111",
            trust: false,
            context: &context,
        };
        evaluate(&request, policies)
    }

    /// Identity side x resource side, each silent, allowing or denying.
    #[test]
    fn the_nine_cells() {
        let statement =
            |effect: &str| json!({"Effect": effect, "Action": "dynamodb:GetItem", "Resource": "*"});
        let grant = |effect: &str, to: &Principal| json!({"Effect": effect, "Action": "dynamodb:GetItem", "Resource": "*", "Principal": {"AWS": to.arn}});
        let effects = [None, Some("Allow"), Some("Deny")];
        for account in ["111111111111", "222222222222"] {
            let caller = user(account);
            for on_identity in effects {
                for on_resource in effects {
                    let identity: Vec<_> =
                        on_identity.iter().map(|e| policy("own", json!([statement(e)]))).collect();
                    let resource = on_resource.map(|e| policy("table", json!([grant(e, &caller)])));
                    let verdict = judge(
                        &caller,
                        &Policies { identity: &identity, resource: resource.as_ref(), ..Policies::default() },
                    );
                    let sides = [on_identity, on_resource];
                    let expected = !sides.contains(&Some("Deny"))
                        && if account == "111111111111" {
                            sides.contains(&Some("Allow"))
                        } else {
                            sides == [Some("Allow"); 2]
                        };
                    assert_eq!(verdict.is_allowed(), expected, "{account} {sides:?}: {verdict:?}");
                }
            }
        }
    }

    #[test]
    fn the_deciding_statement_is_named() {
        let identity = [policy(
            "own",
            json!([
                {"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"},
                {"Sid": "NoReads", "Effect": "Deny", "Action": "dynamodb:Get*", "Resource": TABLE},
            ]),
        )];
        let verdict = judge(&user("111111111111"), &Policies { identity: &identity, ..Policies::default() });
        let by = StatementRef {
            side: Side::Identity,
            policy: "own".into(),
            index: 1,
            sid: Some("NoReads".into()),
        };
        assert_eq!(verdict, Verdict::Denied(by));
    }

    #[test]
    fn an_account_as_principal_delegates() {
        let resource = policy(
            "table",
            json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Principal": {"AWS": "111111111111"}}),
        );
        let only_resource = Policies { resource: Some(&resource), ..Policies::default() };
        assert_eq!(judge(&user("111111111111"), &only_resource), Verdict::NotAllowed(Side::Identity));
        let root = Principal {
            kind: PrincipalKind::Root,
            arn: "arn:aws:iam::111111111111:root".into(),
            ..user("111111111111")
        };
        assert!(judge(&root, &Policies::default()).is_allowed());
    }

    #[test]
    fn a_session_policy_narrows_the_role_but_not_what_names_the_session() {
        let allow = |to: &str| {
            policy(
                "table",
                json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Principal": {"AWS": to}}),
            )
        };
        let caller = session();
        let (to_role, to_session) = (allow(ROLE), allow(&caller.arn));
        let narrow = [policy("session", json!({"Effect": "Allow", "Action": "s3:*", "Resource": "*"}))];
        let with = |resource| Policies { session: Some(&narrow), resource, ..Policies::default() };
        assert_eq!(judge(&caller, &with(Some(&to_role))), Verdict::NotAllowed(Side::Session));
        assert!(judge(&caller, &with(Some(&to_session))).is_allowed());
        let wide = Policies { resource: Some(&to_role), ..Policies::default() };
        assert!(judge(&caller, &wide).is_allowed());
    }

    #[test]
    fn not_principal_spares_only_who_is_listed_in_full() {
        let deny = |listed: Value| {
            policy(
                "table",
                json!({"Effect": "Deny", "Action": "*", "Resource": "*", "NotPrincipal": {"AWS": listed}}),
            )
        };
        let caller = session();
        let identity = [policy("own", json!({"Effect": "Allow", "Action": "*", "Resource": "*"}))];
        for (listed, expected) in [
            (json!([caller.arn, ROLE, "111111111111"]), true),
            (json!([caller.arn, ROLE]), false),
            (json!([ROLE, "111111111111"]), false),
        ] {
            let resource = deny(listed.clone());
            let policies = Policies { identity: &identity, resource: Some(&resource), ..Policies::default() };
            assert_eq!(judge(&caller, &policies).is_allowed(), expected, "{listed}");
        }
    }

    #[test]
    fn what_a_document_leaves_out_is_not_made_up() {
        let caller = user("111111111111");
        let judged = |document: Value| {
            let identity =
                [Named { name: "own".into(), policy: Policy::parse(&document.to_string()).unwrap().into() }];
            let policies = Policies { identity: &identity, ..Policies::default() };
            judge(&caller, &policies).is_allowed()
        };
        let whole = json!({"Effect": "Allow", "Action": "dynamodb:GetItem", "Resource": TABLE});
        assert!(judged(json!({"Version": "2012-10-17", "Statement": whole})));
        let nowhere = json!({"Effect": "Allow", "Action": "dynamodb:GetItem"});
        assert!(!judged(json!({"Version": "2012-10-17", "Statement": nowhere})), "no Resource");
        let variable = format!("{TABLE}${{*}}").replace("${*}", "${aws:nothing, ''}");
        let with = json!({"Effect": "Allow", "Action": "dynamodb:GetItem", "Resource": variable});
        assert!(judged(json!({"Version": "2012-10-17", "Statement": with})));
        assert!(!judged(json!({"Version": "2008-10-17", "Statement": with})), "no variables then");
        assert!(!judged(json!({"Statement": with})), "nor without a version");
    }

    #[test]
    fn the_root_of_an_account_is_known_in_every_partition() {
        let mut caller = user("111111111111");
        caller.arn = "arn:aws-cn:iam::111111111111:user/alice".into();
        let statement = json!([{"Effect": "Deny", "Action": "*", "Resource": "*",
            "Principal": {"AWS": "arn:aws-cn:iam::111111111111:root"}}]);
        let resource = policy("resource", statement);
        let own = json!([{"Effect": "Allow", "Action": "*", "Resource": "*"}]);
        let identity = [policy("own", own)];
        let policies = Policies { identity: &identity, resource: Some(&resource), ..Policies::default() };
        assert!(matches!(judge(&caller, &policies), Verdict::Denied(_)));
    }
}
