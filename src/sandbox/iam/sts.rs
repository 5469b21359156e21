//! The Security Token Service: sessions of roles, of federated users, and who one is.
//!
//! Owns how sessions come to be: trust policies, external ids, durations, role chaining. Promises that a
//! session's keys are good until they expire by the sandbox's clock.

use super::{Caller, Credentials, Directory, Document, Owner};
use crate::iam::condition::Context;
use crate::iam::evaluate::{Named, Policies, Principal, PrincipalKind, Request, evaluate};
use crate::sandbox::error::{ApiError, ApiResult, xml_escape};
use crate::sandbox::gateway::{Source, authorize::caller_context};
use crate::sandbox::random::Chance;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

/// Parameters of a Query request.
pub type Params = BTreeMap<String, String>;

/// A session of a chained role lasts an hour at most, in seconds.
const CHAINED_MOST_S: u64 = 3600;

/// What an STS call is made with.
pub struct Call<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// From where.
    pub source: &'a Source,
    /// The parameters.
    pub params: &'a Params,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// The chance that keys are drawn from.
    pub chance: &'a Chance,
}

impl Call<'_> {
    fn param(&self, name: &str) -> ApiResult<&str> {
        self.params.get(name).map(String::as_str).ok_or_else(|| {
            ApiError::validation(format!(
                "1 validation error detected: Value null at '{name}' must not be null"
            ))
        })
    }

    fn duration_s(&self, default: u64, most: u64) -> ApiResult<u64> {
        let Some(text) = self.params.get("DurationSeconds") else { return Ok(default.min(most)) };
        match text.parse() {
            Ok(seconds) if (900..=most).contains(&seconds) => Ok(seconds),
            _ => Err(ApiError::validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            )),
        }
    }

    fn session_policy(&self) -> ApiResult<Option<Vec<Named>>> {
        let Some(text) = self.params.get("Policy") else { return Ok(None) };
        let policy = Document::read(text)?.policy;
        Ok(Some(vec![Named { name: "session".into(), policy }]))
    }

    fn is_session(&self) -> bool {
        use PrincipalKind::{FederatedUser, RoleSession};
        matches!(self.caller.principal.kind, RoleSession | FederatedUser)
    }
}

impl Directory {
    /// An STS operation by name: the content of its result element.
    ///
    /// # Errors
    /// What STS answers.
    pub fn sts(&mut self, operation: &str, call: &Call<'_>) -> ApiResult<String> {
        match operation {
            "GetCallerIdentity" => {
                let Caller { principal, user_id, .. } = call.caller;
                Ok(format!(
                    "<Arn>{}</Arn><UserId>{}</UserId><Account>{}</Account>",
                    xml_escape(&principal.arn),
                    xml_escape(user_id),
                    principal.account
                ))
            }
            "AssumeRole" => self.assume_role(call),
            "GetFederationToken" => self.federation_token(call),
            "GetSessionToken" => self.session_token(call),
            _ => Err(ApiError::new("InvalidAction", format!("Could not find operation {operation}"))),
        }
    }

    fn assume_role(&mut self, call: &Call<'_>) -> ApiResult<String> {
        let role_arn = call.param("RoleArn")?;
        let session = call.param("RoleSessionName")?;
        let valid = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        if !(2..=64).contains(&session.len()) || !session.chars().all(valid) {
            return Err(ApiError::validation(format!(
                "1 validation error detected: Value '{session}' at 'roleSessionName' failed to satisfy \
                 constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*"
            )));
        }
        let principal = &call.caller.principal;
        let denied = || {
            let message = format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                principal.arn
            );
            ApiError::new("AccessDeniedException", message)
        };
        if principal.kind == PrincipalKind::Root {
            return Err(ApiError::new("AccessDeniedException", "Roles may not be assumed by root accounts."));
        }
        let (account, name) = parse_role(role_arn).ok_or_else(denied)?;
        let role =
            self.accounts.get(account).and_then(|account| account.roles.get(name)).ok_or_else(denied)?;
        let context = |key: &str| match key {
            "sts:externalid" => call.params.get("ExternalId").map(|id| vec![id.clone()]),
            "sts:rolesessionname" => Some(vec![session.to_owned()]),
            "aws:resourceaccount" => Some(vec![account.to_owned()]),
            _ => caller_context(call.caller, call.source, call.now_ms, key),
        };
        let trust = Named { name: "trust".into(), policy: role.trust.effective(call.now_ms).policy.clone() };
        if !self.allows(call.caller, "sts:AssumeRole", role_arn, account, Some(&trust), &context) {
            return Err(denied());
        }
        let most = if call.is_session() { CHAINED_MOST_S } else { role.max_session_s };
        let seconds = call.duration_s(3600, most)?;
        let policies = call.session_policy()?;
        let arn = format!("arn:aws:sts::{account}:assumed-role/{name}/{session}");
        let id = format!("{}:{session}", role.id);
        let principal = Principal {
            kind: PrincipalKind::RoleSession,
            account: account.into(),
            arn: arn.clone(),
            role: Some(role_arn.into()),
        };
        let owner = Owner::Session { principal, id: id.clone(), identity: Some(name.into()), policies };
        let keys = self.issue(account, owner, Some(call.now_ms + seconds * 1000), call.chance);
        Ok(format!(
            "{}<AssumedRoleUser><AssumedRoleId>{id}</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser>",
            keys_xml(&keys)
        ))
    }

    fn federation_token(&mut self, call: &Call<'_>) -> ApiResult<String> {
        let name = call.param("Name")?;
        let principal = &call.caller.principal;
        let account = principal.account.clone();
        let arn = format!("arn:aws:sts::{account}:federated-user/{name}");
        if call.is_session() {
            let message = "Cannot call GetFederationToken with session credentials";
            return Err(ApiError::new("AccessDeniedException", message));
        }
        self.require(call, "sts:GetFederationToken", &arn)?;
        let seconds = call.duration_s(43_200, 129_600)?;
        // Without a policy a federated user has no permission but those that name it.
        let policies = Some(call.session_policy()?.unwrap_or_default());
        let id = format!("{account}:{name}");
        let federated = Principal {
            kind: PrincipalKind::FederatedUser,
            account: account.clone(),
            arn: arn.clone(),
            role: None,
        };
        let identity = call.caller.user_name.clone();
        let owner = Owner::Session { principal: federated, id: id.clone(), identity, policies };
        let keys = self.issue(&account, owner, Some(call.now_ms + seconds * 1000), call.chance);
        Ok(format!(
            "{}<FederatedUser><FederatedUserId>{id}</FederatedUserId><Arn>{arn}</Arn></FederatedUser>",
            keys_xml(&keys)
        ))
    }

    fn session_token(&mut self, call: &Call<'_>) -> ApiResult<String> {
        if call.is_session() {
            let message = "Cannot call GetSessionToken with session credentials";
            return Err(ApiError::new("AccessDeniedException", message));
        }
        let seconds = call.duration_s(43_200, 129_600)?;
        let Caller { principal, user_id, user_name, .. } = call.caller;
        let owner = Owner::Session {
            principal: principal.clone(),
            id: user_id.clone(),
            identity: user_name.clone(),
            policies: None,
        };
        let keys = self.issue(&principal.account, owner, Some(call.now_ms + seconds * 1000), call.chance);
        Ok(keys_xml(&keys))
    }

    /// Requires that the caller's own policies allow an action in its own account.
    pub(super) fn require(&self, call: &Call<'_>, action: &str, resource: &str) -> ApiResult<()> {
        let account = &call.caller.principal.account;
        let context = |key: &str| caller_context(call.caller, call.source, call.now_ms, key);
        if self.allows(call.caller, action, resource, account, None, &context) {
            return Ok(());
        }
        let message = format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} because no identity-based \
             policy allows the {action} action",
            call.caller.principal.arn
        );
        Err(ApiError::new("AccessDeniedException", message))
    }

    fn allows(
        &self,
        caller: &Caller,
        action: &str,
        resource: &str,
        resource_account: &str,
        trust: Option<&Named>,
        context: &Context<'_>,
    ) -> bool {
        let principal = &caller.principal;
        let request =
            Request { principal, action, resource, resource_account, trust: trust.is_some(), context };
        let policies = Policies {
            identity: &caller.identity,
            boundary: None,
            session: caller.session.as_deref(),
            resource: trust,
        };
        evaluate(&request, &policies).is_allowed()
    }
}

/// The account and name in a role's ARN.
fn parse_role(arn: &str) -> Option<(&str, &str)> {
    let (account, resource) = arn.strip_prefix("arn:aws:iam::")?.split_once(':')?;
    let path = resource.strip_prefix("role/")?;
    Some((account, path.rsplit('/').next()?))
}

fn keys_xml(keys: &Credentials) -> String {
    let expires = UNIX_EPOCH + Duration::from_millis(keys.expires_ms.unwrap_or_default());
    format!(
        "<Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
         <SessionToken>{}</SessionToken><Expiration>{}</Expiration></Credentials>",
        keys.access_key_id,
        keys.secret_access_key,
        keys.session_token.as_deref().unwrap_or_default(),
        humantime::format_rfc3339_seconds(expires),
    )
}
