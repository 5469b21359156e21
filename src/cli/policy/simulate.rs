//! `policy simulate`: whether policy documents allow a request, and which statement decides.
//!
//! The same evaluation as the sandbox's. It knows identity policies, permissions boundaries, session policies and the
//! policy of the resource; the organization's policies it does not know, and these can only take away.

use super::super::{FOUND, answer};
use crate::access::policy::{Identity, account_of};
use crate::iam::evaluate::{
    Named, Policies, Principal, PrincipalKind, Request, StatementRef, Verdict, evaluate,
};
use crate::iam::policy::Policy;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `policy simulate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Who calls: a role, a role's session, a user, a federated user or an account's root
    #[arg(long, value_name = "ARN")]
    principal: String,
    /// What is asked for, such as dynamodb:GetItem
    #[arg(long, value_name = "ACTION", value_parser = action)]
    action: String,
    /// On what
    #[arg(long, value_name = "ARN")]
    resource: String,
    /// The account that owns the resource, where its ARN does not say so
    #[arg(long, value_name = "ACCOUNT")]
    resource_account: Option<String>,
    /// A context key of the request; given several times, a key has several values
    #[arg(long, value_name = "KEY=VALUE", value_parser = context)]
    context: Vec<(String, String)>,
    /// A policy that was passed when the caller's session was made; may be given several times
    #[arg(long, value_name = "FILE")]
    session: Vec<PathBuf>,
    /// The policy that is the permissions boundary of the caller's role or user
    #[arg(long, value_name = "FILE")]
    boundary: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Policy documents: one with principals is the resource's policy, one without is the caller's own
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

fn action(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((service, call)) if !service.is_empty() && !call.is_empty() && !text.contains(['*', '?']) => {
            Ok(text.to_owned())
        }
        _ => Err("it must be one action with its service, such as dynamodb:GetItem".to_owned()),
    }
}

fn context(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be KEY=VALUE, such as aws:SourceVpce=vpce-1")?;
    Ok((key.to_ascii_lowercase(), value.to_owned()))
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let principal = principal(&args.principal)?;
    let (mut identity, mut resource) = (Vec::new(), None);
    for file in &args.files {
        let named = read(file)?;
        let statements = &named.policy.statements;
        if statements.iter().any(|statement| statement.principals.is_some()) {
            if statements.iter().any(|statement| statement.principals.is_none()) {
                bail!("{}: some statements have a Principal and some have none", file.display());
            }
            if let Some(first) = resource.replace(named) {
                bail!("{} and {} are both the resource's: it has one policy", first.name, file.display());
            }
        } else {
            identity.push(named);
        }
    }
    let session = args.session.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let boundary = args.boundary.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let named = account_of(&args.resource);
    let owner = args.resource_account.as_deref().or_else(|| Some(named).filter(|a| !a.is_empty()));
    let Some(owner) = owner else {
        bail!("{} does not name its account: give --resource-account", args.resource)
    };
    let keys = keys(args, &principal, owner);
    let lookup = |key: &str| keys.get(key).cloned();
    let request = Request {
        principal: &principal,
        action: &args.action,
        resource: &args.resource,
        resource_account: owner,
        trust: args.action.eq_ignore_ascii_case("sts:AssumeRole"),
        context: &lookup,
    };
    let session = (!session.is_empty()).then_some(session);
    let boundary = (!boundary.is_empty()).then_some(boundary);
    let policies = Policies {
        identity: &identity,
        boundary: boundary.as_deref(),
        session: session.as_deref(),
        resource: resource.as_ref(),
    };
    let verdict = evaluate(&request, &policies);
    answer(&if args.json { as_json(&verdict, &request).to_string() } else { as_text(&verdict, &request) });
    Ok(if verdict.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn read(file: &Path) -> anyhow::Result<Named> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let policy = Policy::parse(&text).with_context(|| name.clone())?;
    Ok(Named { name, policy: Arc::new(policy) })
}

/// Whom an ARN names. A role stands for a session of it.
fn principal(arn: &str) -> anyhow::Result<Principal> {
    let fields: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, service, "", account, name] = fields[..] else {
        bail!("{arn} is not the ARN of a principal")
    };
    let of = |kind, arn: String, role| Principal { kind, account: account.to_owned(), arn, role };
    let kind = name.split('/').next().unwrap_or_default();
    Ok(match (service, kind) {
        ("iam", "root") => of(PrincipalKind::Root, arn.to_owned(), None),
        ("iam", "user") => of(PrincipalKind::User, arn.to_owned(), None),
        ("iam", "role") => {
            let short = name.rsplit('/').next().unwrap_or_default();
            let session = format!("arn:{partition}:sts::{account}:assumed-role/{short}/simulated");
            of(PrincipalKind::RoleSession, session, Some(arn.to_owned()))
        }
        ("sts", "assumed-role") => {
            let role = name.split('/').nth(1).unwrap_or_default();
            let role = format!("arn:{partition}:iam::{account}:role/{role}");
            of(PrincipalKind::RoleSession, arn.to_owned(), Some(role))
        }
        ("sts", "federated-user") => of(PrincipalKind::FederatedUser, arn.to_owned(), None),
        _ => bail!("{arn} is neither a role, a user, a session nor an account's root"),
    })
}

/// The keys that follow from the request, and those that were given, which win.
fn keys(args: &Args, principal: &Principal, owner: &str) -> BTreeMap<String, Vec<String>> {
    let kind = match principal.kind {
        PrincipalKind::Root => "Account",
        PrincipalKind::User => "User",
        PrincipalKind::RoleSession => "AssumedRole",
        PrincipalKind::FederatedUser => "FederatedUser",
    };
    let mut keys = BTreeMap::from([
        ("aws:principalarn".to_owned(), vec![principal.principal_arn().to_owned()]),
        ("aws:principalaccount".to_owned(), vec![principal.account.clone()]),
        ("aws:principaltype".to_owned(), vec![kind.to_owned()]),
        ("aws:resourceaccount".to_owned(), vec![owner.to_owned()]),
        ("aws:securetransport".to_owned(), vec!["true".to_owned()]),
    ]);
    if principal.kind == PrincipalKind::User {
        keys.insert("aws:username".to_owned(), vec![Identity::of(&principal.arn).name.to_owned()]);
    }
    let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in &args.context {
        given.entry(key.clone()).or_default().push(value.clone());
    }
    keys.append(&mut given);
    keys
}

fn spell(by: &StatementRef) -> String {
    let sid = by.sid.as_ref().map(|sid| format!(" ({sid})")).unwrap_or_default();
    format!("statement {}{sid} of {}, {}", by.index + 1, by.policy, by.side)
}

fn as_text(verdict: &Verdict, request: &Request<'_>) -> String {
    match verdict {
        Verdict::Allowed(by) if by.is_empty() => {
            "allowed: the root user of the resource's account".to_owned()
        }
        Verdict::Allowed(by) => {
            format!("allowed by {}", by.iter().map(spell).collect::<Vec<_>>().join("\n    and by "))
        }
        Verdict::Denied(by) => format!("denied by {}", spell(by)),
        Verdict::NotAllowed(_) => format!("denied: {}", verdict.denial(request).unwrap_or_default()),
    }
}

fn as_json(verdict: &Verdict, request: &Request<'_>) -> Value {
    let reference = |by: &StatementRef| json!({ "file": by.policy, "statement": by.index, "sid": by.sid, "side": by.side.to_string().trim_end_matches(" policy") });
    let by: Vec<Value> = match verdict {
        Verdict::Allowed(by) => by.iter().map(reference).collect(),
        Verdict::Denied(by) => vec![reference(by)],
        Verdict::NotAllowed(_) => Vec::new(),
    };
    json!({ "allowed": verdict.is_allowed(), "by": by, "message": verdict.denial(request) })
}
