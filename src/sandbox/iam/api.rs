//! The part of the IAM API that sets up users and roles: enough for the AWS CLI to do it.

use super::sts::Call;
use super::{Directory, Document, Inline, Role, User, no_such_entity};
use crate::sandbox::error::{ApiError, ApiResult, xml_escape};
use crate::sandbox::random::Chance;
use crate::sandbox::time::Propagating;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

const ID: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

impl User {
    /// A user without policies.
    #[must_use]
    pub fn new(now_ms: u64, chance: &Chance) -> Self {
        Self { id: format!("AIDA{}", chance.text(ID, 17)), created_ms: now_ms, policies: Inline::new() }
    }
}

impl Role {
    /// A role without policies.
    #[must_use]
    pub fn new(trust: Document, max_session_s: u64, now_ms: u64, chance: &Chance) -> Self {
        Self {
            id: format!("AROA{}", chance.text(ID, 17)),
            created_ms: now_ms,
            max_session_s,
            trust: Propagating::settled(trust),
            policies: Inline::new(),
        }
    }
}

/// Puts or (with `None`) deletes an inline policy.
pub(in crate::sandbox) fn set_inline(
    policies: &mut Inline,
    name: &str,
    document: Option<Document>,
    now_ms: u64,
    delay_ms: u64,
) {
    let slot = policies.entry(name.into()).or_insert_with(|| Propagating::settled(None));
    slot.set(document, now_ms, now_ms + delay_ms);
}

impl Directory {
    /// An IAM operation by name: the content of its result element. Policies take effect `delay_ms` later.
    ///
    /// # Errors
    /// What IAM answers.
    pub fn iam(&mut self, operation: &str, call: &Call<'_>, delay_ms: u64) -> ApiResult<String> {
        let id = call.caller.principal.account.clone();
        let param = |name: &str| {
            call.params.get(name).map(String::as_str).ok_or_else(|| {
                ApiError::validation(format!("1 validation error detected: Value at '{name}' is null"))
            })
        };
        let own_name = call.caller.user_name.as_deref();
        let user_name = || call.params.get("UserName").map(String::as_str).or(own_name);
        let resource = match (user_name(), call.params.get("RoleName")) {
            (_, Some(role)) => format!("arn:aws:iam::{id}:role/{role}"),
            (Some(user), None) => format!("arn:aws:iam::{id}:user/{user}"),
            (None, None) => format!("arn:aws:iam::{id}:*"),
        };
        self.require(call, &format!("iam:{operation}"), &resource)?;
        let user = || user_name().ok_or_else(|| ApiError::validation("Must specify userName"));
        let now = call.now_ms;

        match operation {
            "CreateUser" => {
                let name = param("UserName")?;
                let account = self.account_mut(&id)?;
                if account.users.contains_key(name) {
                    return Err(exists("User", name));
                }
                let made = User::new(now, call.chance);
                let xml = user_xml(&id, name, &made);
                account.users.insert(name.into(), made);
                Ok(xml)
            }
            "GetUser" => {
                let name = user()?;
                Ok(user_xml(&id, name, self.user_mut(&id, name)?))
            }
            "DeleteUser" => {
                let name = user()?;
                self.account_mut(&id)?.users.remove(name).ok_or_else(|| no_such_entity("user", name))?;
                Ok(String::new())
            }
            "ListUsers" => {
                let users = &self.account_mut(&id)?.users;
                let members: String =
                    users.iter().map(|(name, user)| user_members(&id, name, user)).collect();
                Ok(format!("<Users>{members}</Users><IsTruncated>false</IsTruncated>"))
            }
            "CreateAccessKey" => {
                let name = user()?;
                let keys = self.user_key(&id, name, call.chance)?;
                Ok(format!(
                    "<AccessKey><UserName>{name}</UserName><AccessKeyId>{}</AccessKeyId>\
                     <Status>Active</Status><SecretAccessKey>{}</SecretAccessKey>\
                     <CreateDate>{}</CreateDate></AccessKey>",
                    keys.access_key_id,
                    keys.secret_access_key,
                    date(now)
                ))
            }
            "DeleteAccessKey" => self.delete_key(&id, param("AccessKeyId")?).map(|()| String::new()),
            "PutUserPolicy" => {
                let document = Document::read(param("PolicyDocument")?)?;
                let policies = &mut self.user_mut(&id, user()?)?.policies;
                set_inline(policies, param("PolicyName")?, Some(document), now, delay_ms);
                Ok(String::new())
            }
            "DeleteUserPolicy" => {
                let policies = &mut self.user_mut(&id, user()?)?.policies;
                delete_inline(policies, param("PolicyName")?, now, delay_ms)
            }
            "CreateRole" => {
                let name = param("RoleName")?;
                let trust = Document::read(param("AssumeRolePolicyDocument")?)?;
                let most = call.params.get("MaxSessionDuration").and_then(|s| s.parse().ok()).unwrap_or(3600);
                let account = self.account_mut(&id)?;
                if account.roles.contains_key(name) {
                    return Err(exists("Role", name));
                }
                let made = Role::new(trust, most, now, call.chance);
                let xml = format!("<Role>{}</Role>", role_members(&id, name, &made));
                account.roles.insert(name.into(), made);
                Ok(xml)
            }
            "GetRole" => {
                let name = param("RoleName")?;
                Ok(format!("<Role>{}</Role>", role_members(&id, name, self.role_mut(&id, name)?)))
            }
            "DeleteRole" => {
                let name = param("RoleName")?;
                self.account_mut(&id)?.roles.remove(name).ok_or_else(|| no_such_entity("role", name))?;
                Ok(String::new())
            }
            "ListRoles" => {
                let roles = &self.account_mut(&id)?.roles;
                let mut members = String::new();
                for (name, role) in roles {
                    // Writing to a string cannot fail.
                    let _ = write!(members, "<member>{}</member>", role_members(&id, name, role));
                }
                Ok(format!("<Roles>{members}</Roles><IsTruncated>false</IsTruncated>"))
            }
            "UpdateAssumeRolePolicy" => {
                let document = Document::read(param("PolicyDocument")?)?;
                let role = self.role_mut(&id, param("RoleName")?)?;
                role.trust.set(document, now, now + delay_ms);
                Ok(String::new())
            }
            "PutRolePolicy" => {
                let document = Document::read(param("PolicyDocument")?)?;
                let policies = &mut self.role_mut(&id, param("RoleName")?)?.policies;
                set_inline(policies, param("PolicyName")?, Some(document), now, delay_ms);
                Ok(String::new())
            }
            "DeleteRolePolicy" => {
                let policies = &mut self.role_mut(&id, param("RoleName")?)?.policies;
                delete_inline(policies, param("PolicyName")?, now, delay_ms)
            }
            _ => Err(ApiError::new("InvalidAction", format!("Could not find operation {operation}"))),
        }
    }

    fn user_mut(&mut self, account: &str, name: &str) -> ApiResult<&mut User> {
        self.account_mut(account)?.users.get_mut(name).ok_or_else(|| no_such_entity("user", name))
    }

    fn role_mut(&mut self, account: &str, name: &str) -> ApiResult<&mut Role> {
        self.account_mut(account)?.roles.get_mut(name).ok_or_else(|| no_such_entity("role", name))
    }
}

fn delete_inline(policies: &mut Inline, name: &str, now_ms: u64, delay_ms: u64) -> ApiResult<String> {
    if policies.get(name).is_none_or(|slot| slot.latest().is_none()) {
        return Err(no_such_entity("policy", name));
    }
    set_inline(policies, name, None, now_ms, delay_ms);
    Ok(String::new())
}

fn exists(kind: &str, name: &str) -> ApiError {
    ApiError::new("EntityAlreadyExists", format!("{kind} with name {name} already exists.")).with_status(409)
}

fn date(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

fn user_members(account: &str, name: &str, user: &User) -> String {
    format!(
        "<member><Path>/</Path><UserName>{name}</UserName><UserId>{}</UserId>\
         <Arn>arn:aws:iam::{account}:user/{name}</Arn><CreateDate>{}</CreateDate></member>",
        user.id,
        date(user.created_ms)
    )
}

fn user_xml(account: &str, name: &str, user: &User) -> String {
    user_members(account, name, user).replace("<member>", "<User>").replace("</member>", "</User>")
}

fn role_members(account: &str, name: &str, role: &Role) -> String {
    format!(
        "<Path>/</Path><RoleName>{name}</RoleName><RoleId>{}</RoleId>\
         <Arn>arn:aws:iam::{account}:role/{name}</Arn><CreateDate>{}</CreateDate>\
         <AssumeRolePolicyDocument>{}</AssumeRolePolicyDocument><MaxSessionDuration>{}</MaxSessionDuration>",
        role.id,
        date(role.created_ms),
        xml_escape(&percent_encode(&role.trust.latest().text)),
        role.max_session_s
    )
}

/// IAM answers policy documents percent-encoded.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
