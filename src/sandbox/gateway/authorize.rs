//! Whether a caller may do what a DynamoDB request asks: gathers policies and context, lets
//! [`evaluate`](crate::iam::evaluate) decide, and words the denial.

use super::Source;
use crate::iam::evaluate::{Named, Policies, PrincipalKind, Request, Side, Verdict, evaluate};
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::iam::Caller;
use crate::sandbox::tables::Region;
use crate::sandbox::tables::request::{Access, Resolved};

/// Lets the request pass if everything that it needs is allowed.
///
/// # Errors
/// `AccessDeniedException` for the first permission that is missing.
pub fn authorize(caller: &Caller, source: &Source, resolved: &Resolved, region: &Region) -> ApiResult<()> {
    let now_ms = region.now_ms();
    for access in &resolved.accesses {
        let context = |key: &str| match key {
            "aws:requestedregion" => Some(vec![resolved.region.clone()]),
            "aws:resourceaccount" => Some(vec![resolved.account.clone()]),
            _ if key.starts_with("dynamodb:") => {
                let arn = access.guarded_by.as_ref()?;
                let index = resolved.body.get("IndexName").and_then(serde_json::Value::as_str);
                let partition_key = region.partition_key(&arn.table, index).unwrap_or_default();
                resolved.context(access, key, &partition_key)
            }
            _ => caller_context(caller, source, now_ms, key),
        };
        let request = request(caller, resolved, access, &context);
        if !access.shareable && caller.principal.account != resolved.account {
            return Err(denied(&request, &Verdict::NotAllowed(Side::Resource)));
        }
        let document = access.guarded_by.as_ref().and_then(|arn| region.policy_of(arn)?.effective(now_ms));
        let resource =
            document.map(|document| Named { name: "resource".into(), policy: document.policy.clone() });
        let policies = Policies {
            identity: &caller.identity,
            boundary: None,
            session: caller.session.as_deref(),
            resource: resource.as_ref(),
        };
        let verdict = evaluate(&request, &policies);
        if !verdict.is_allowed() {
            return Err(denied(&request, &verdict));
        }
    }
    Ok(())
}

/// The denial of anything in an account that does not exist: it shares nothing.
pub fn no_such_account(caller: &Caller, resolved: &Resolved) -> ApiError {
    let nothing = |_: &str| None;
    match resolved.accesses.first() {
        Some(access) => {
            denied(&request(caller, resolved, access, &nothing), &Verdict::NotAllowed(Side::Resource))
        }
        None => ApiError::validation("The request names no table"),
    }
}

fn request<'a>(
    caller: &'a Caller,
    resolved: &'a Resolved,
    access: &'a Access,
    context: &'a (dyn Fn(&str) -> Option<Vec<String>> + 'a),
) -> Request<'a> {
    Request {
        principal: &caller.principal,
        action: &access.action,
        resource: &access.resource,
        resource_account: &resolved.account,
        trust: false,
        context,
    }
}

fn denied(request: &Request<'_>, verdict: &Verdict) -> ApiError {
    ApiError::new("AccessDeniedException", verdict.denial(request).unwrap_or_default())
}

/// The context keys that every request has from who sends it and from where.
pub fn caller_context(caller: &Caller, source: &Source, now_ms: u64, key: &str) -> Option<Vec<String>> {
    let principal = &caller.principal;
    let value = match key {
        "aws:principalarn" => principal.principal_arn().to_owned(),
        "aws:principalaccount" => principal.account.clone(),
        "aws:principalorgid" => caller.organization.clone()?,
        "aws:principaltype" => match principal.kind {
            PrincipalKind::Root => "Account",
            PrincipalKind::User => "User",
            PrincipalKind::RoleSession => "AssumedRole",
            PrincipalKind::FederatedUser => "FederatedUser",
        }
        .to_owned(),
        "aws:principalisawsservice" | "aws:viaawsservice" => "false".to_owned(),
        "aws:userid" => caller.user_id.clone(),
        "aws:username" => caller.user_name.clone()?,
        "aws:sourceip" if source.vpce.is_none() => source.ip.to_string(),
        "aws:sourcevpce" => source.vpce.clone()?,
        // AWS is reached over TLS; the sandbox's plain HTTP stands in for it.
        "aws:securetransport" => "true".to_owned(),
        "aws:currenttime" | "aws:epochtime" => (now_ms / 1000).to_string(),
        _ => return None,
    };
    Some(vec![value])
}
