//! Accounts, their users and roles, access keys and sessions.
//!
//! Owns who exists, who holds which key and which identity policies are in effect. Promises that a caller is
//! taken from the access key alone. Leaves to others: signatures ([`super::gateway`]), what policies mean
//! ([`crate::iam`]) and the Query API ([`api`]).

pub mod api;
pub mod sts;

use super::error::{ApiError, ApiResult};
use super::random::Chance;
use super::time::Propagating;
use crate::iam::evaluate::{Named, Principal, PrincipalKind};
use crate::iam::policy::Policy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Keys that a client signs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret that signs.
    pub secret_access_key: String,
    /// The session's token, of temporary credentials.
    pub session_token: Option<String>,
    /// When temporary credentials end, in milliseconds since 1970, by the sandbox's clock.
    pub expires_ms: Option<u64>,
}

impl From<Credentials> for aws_credential_types::Credentials {
    fn from(keys: Credentials) -> Self {
        let expires = keys.expires_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
        Self::new(keys.access_key_id, keys.secret_access_key, keys.session_token, expires, "sandbox")
    }
}

/// Inline policies by name; `None` once deleted.
type Inline = BTreeMap<String, Propagating<Option<Document>>>;

/// A policy as it was put, and as it is matched.
#[derive(Debug, Clone)]
pub struct Document {
    /// The text as given.
    pub text: String,
    /// What it says.
    pub policy: Arc<Policy>,
}

impl Document {
    /// Reads a policy's text.
    ///
    /// # Errors
    /// `MalformedPolicyDocument` when it cannot be read.
    pub fn read(text: &str) -> ApiResult<Self> {
        let policy = Policy::parse(text)
            .map_err(|error| ApiError::new("MalformedPolicyDocument", error.to_string()))?;
        Ok(Self { text: text.into(), policy: Arc::new(policy) })
    }
}

/// An IAM user.
#[derive(Debug)]
pub struct User {
    /// Unique id, `AIDA…`.
    pub id: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its inline policies.
    pub policies: Inline,
}

/// An IAM role.
#[derive(Debug)]
pub struct Role {
    /// Unique id, `AROA…`.
    pub id: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Longest session, in seconds.
    pub max_session_s: u64,
    /// Who may assume it.
    pub trust: Propagating<Document>,
    /// Its inline policies.
    pub policies: Inline,
}

/// One account's identities.
#[derive(Debug, Default)]
pub struct Account {
    /// The organization that it belongs to, such as `o-example`.
    pub organization: Option<String>,
    /// Users by name.
    pub users: BTreeMap<String, User>,
    /// Roles by name.
    pub roles: BTreeMap<String, Role>,
}

#[derive(Debug, Clone)]
enum Owner {
    Root,
    User(String),
    Session { principal: Principal, id: String, identity: Option<String>, policies: Option<Vec<Named>> },
}

#[derive(Debug, Clone)]
struct Key {
    account: String,
    secret: String,
    token: Option<String>,
    expires_ms: Option<u64>,
    owner: Owner,
}

/// Who signed a request, with the policies that are in effect for it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal.
    pub principal: Principal,
    /// The account's organization.
    pub organization: Option<String>,
    /// `aws:userid`.
    pub user_id: String,
    /// `aws:username`, of a user.
    pub user_name: Option<String>,
    /// Its identity policies.
    pub identity: Vec<Named>,
    /// The policies passed when its session was made.
    pub session: Option<Vec<Named>>,
}

/// All accounts of a sandbox.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: BTreeMap<String, Account>,
    keys: BTreeMap<String, Key>,
}

impl Directory {
    /// The account, made if it is new.
    ///
    /// # Errors
    /// When the id is not 12 digits.
    pub fn ensure(&mut self, id: &str) -> ApiResult<&mut Account> {
        if id.len() != 12 || !id.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ApiError::validation(format!("an account id has 12 digits, not {id:?}")));
        }
        Ok(self.accounts.entry(id.into()).or_default())
    }

    /// The accounts by id.
    #[must_use]
    pub fn accounts(&self) -> &BTreeMap<String, Account> {
        &self.accounts
    }

    /// An account that exists.
    ///
    /// # Errors
    /// `NoSuchEntity` when it does not.
    pub fn account_mut(&mut self, id: &str) -> ApiResult<&mut Account> {
        self.accounts.get_mut(id).ok_or_else(|| no_such_entity("account", id))
    }

    /// A new access key of the account's root user.
    pub fn root_key(&mut self, account: &str, chance: &Chance) -> Credentials {
        self.issue(account, Owner::Root, None, chance)
    }

    /// A new access key of a user that exists.
    ///
    /// # Errors
    /// `NoSuchEntity` when it does not.
    pub fn user_key(&mut self, account: &str, user: &str, chance: &Chance) -> ApiResult<Credentials> {
        if !self.account_mut(account)?.users.contains_key(user) {
            return Err(no_such_entity("user", user));
        }
        Ok(self.issue(account, Owner::User(user.into()), None, chance))
    }

    /// Ends a user's access key.
    ///
    /// # Errors
    /// `NoSuchEntity` when the account has no such key.
    pub fn delete_key(&mut self, account: &str, access_key_id: &str) -> ApiResult<()> {
        match self.keys.get(access_key_id) {
            Some(key) if key.account == account => {
                self.keys.remove(access_key_id);
                Ok(())
            }
            _ => Err(no_such_entity("Access Key", access_key_id)),
        }
    }

    fn issue(
        &mut self,
        account: &str,
        owner: Owner,
        expires_ms: Option<u64>,
        chance: &Chance,
    ) -> Credentials {
        let temporary = expires_ms.is_some();
        let prefix = if temporary { "ASIA" } else { "AKIA" };
        let id = format!("{prefix}{}", chance.text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16));
        let secret = chance.text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 40);
        let token = temporary.then(|| format!("sandbox{}", chance.hex(48)));
        let key =
            Key { account: account.into(), secret: secret.clone(), token: token.clone(), expires_ms, owner };
        self.keys.insert(id.clone(), key);
        Credentials { access_key_id: id, secret_access_key: secret, session_token: token, expires_ms }
    }

    /// The secret of an access key, which signs its requests.
    #[must_use]
    pub fn secret(&self, access_key_id: &str) -> Option<&str> {
        self.keys.get(access_key_id).map(|key| key.secret.as_str())
    }

    /// Who holds an access key, with what is in effect for them at `now_ms`.
    ///
    /// # Errors
    /// `UnrecognizedClientException` for an unknown key or a wrong token, `ExpiredTokenException` after the end.
    pub fn caller(&self, access_key_id: &str, token: Option<&str>, now_ms: u64) -> ApiResult<Caller> {
        let unrecognized = || {
            ApiError::new(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        };
        let key = self.keys.get(access_key_id).ok_or_else(unrecognized)?;
        if key.token.as_deref() != token {
            return Err(unrecognized());
        }
        if key.expires_ms.is_some_and(|end| end <= now_ms) {
            let message = "The security token included in the request is expired";
            return Err(ApiError::new("ExpiredTokenException", message));
        }
        let account = self.accounts.get(&key.account).ok_or_else(unrecognized)?;
        let organization = account.organization.clone();
        let id = &key.account;
        Ok(match &key.owner {
            Owner::Root => {
                let arn = format!("arn:aws:iam::{id}:root");
                let principal = Principal { kind: PrincipalKind::Root, account: id.clone(), arn, role: None };
                Caller {
                    principal,
                    organization,
                    user_id: id.clone(),
                    user_name: None,
                    identity: Vec::new(),
                    session: None,
                }
            }
            Owner::User(name) => {
                let user = account.users.get(name).ok_or_else(unrecognized)?;
                let arn = format!("arn:aws:iam::{id}:user/{name}");
                let principal = Principal { kind: PrincipalKind::User, account: id.clone(), arn, role: None };
                Caller {
                    principal,
                    organization,
                    user_id: user.id.clone(),
                    user_name: Some(name.clone()),
                    identity: in_effect(&user.policies, now_ms),
                    session: None,
                }
            }
            Owner::Session { principal, id, identity, policies } => {
                let inline = match (principal.kind, identity) {
                    (PrincipalKind::RoleSession, Some(role)) => account.roles.get(role).map(|r| &r.policies),
                    (_, Some(user)) => account.users.get(user).map(|u| &u.policies),
                    (_, None) => None,
                };
                Caller {
                    principal: principal.clone(),
                    organization,
                    user_id: id.clone(),
                    user_name: None,
                    identity: inline.map(|inline| in_effect(inline, now_ms)).unwrap_or_default(),
                    session: policies.clone(),
                }
            }
        })
    }

    /// Ends a session at once; a key that has no end keeps on.
    pub fn expire(&mut self, access_key_id: &str, now_ms: u64) {
        if let Some(key) = self.keys.get_mut(access_key_id).filter(|key| key.expires_ms.is_some()) {
            key.expires_ms = Some(now_ms);
        }
    }
}

fn in_effect(policies: &Inline, now_ms: u64) -> Vec<Named> {
    let effective = |(name, document): (&String, &Propagating<Option<Document>>)| {
        let document = document.effective(now_ms).as_ref()?;
        Some(Named { name: name.clone(), policy: document.policy.clone() })
    };
    policies.iter().filter_map(effective).collect()
}

/// IAM's answer for what is not there.
pub(super) fn no_such_entity(kind: &str, name: &str) -> ApiError {
    ApiError::new("NoSuchEntity", format!("The {kind} with name {name} cannot be found.")).with_status(404)
}
