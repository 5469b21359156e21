//! From a config to the policy documents of every account: the least that lets the replicator do what is asked.
//!
//! Owns which documents there are, where each goes and why. Pure: nobody is called. A member in another account is
//! reached through the resource policies of its table and stream, together with the identity policy of the
//! replicator's role; or, with `assume_role`, through a role in its account, whose trust policy lets the
//! replicator's role in. What is asked for is [`needs`](super::needs)' table; how documents are written out is left
//! to [`render`](super::render).

use super::feeds;
use super::needs::{Action, Feature, Needs};
use super::statement::{allow, document, resource};
use crate::config::{Access, Config, FeedPlace, Member, TableArn};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The account in the principal that stands for the replicator when nothing tells it.
pub const UNKNOWN_ACCOUNT: &str = "ACCOUNT-OF-THE-REPLICATOR";
/// AWS's bound of a resource policy, in bytes with white space.
pub const MOST_RESOURCE: usize = 20 * 1024;
/// AWS's bound of a managed policy, in characters without white space.
pub const MOST_MANAGED: usize = 6144;
/// So many managed policies AWS attaches to a role or a user; on request, twice as many.
pub const MOST_ATTACHED: usize = 10;

/// AWS's bound of a trust policy, in characters without white space: the quota that every account has. It can be
/// raised to twice that.
pub const MOST_TRUST: usize = 2048;

/// The name of the state table among those of members with a key; a member of that name comes first.
pub const STATE_KEY: &str = "state";

/// What documents are written for.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// The ARN of the role that the replicator runs as; by default `shardwalker` in the state table's account.
    pub principal: Option<String>,
    /// Only callers of this organization are let in.
    pub organization: Option<String>,
    /// Only requests through one of these VPC endpoints are let in.
    pub endpoints: Vec<String>,
    /// Only requests from these networks are let in.
    pub networks: Vec<String>,
    /// Customer keys of tables, by the member's name; [`STATE_KEY`] for the state table.
    pub keys: BTreeMap<String, String>,
    /// What is used beside replication.
    pub features: BTreeSet<Feature>,
}

/// Where a document goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// As the resource policy of a table.
    Table(TableArn),
    /// As the resource policy of a table's current stream, and of every later one.
    Stream(TableArn),
    /// As a policy of a role, by the role's ARN.
    Role(String),
    /// As the trust policy of a role, by the role's ARN.
    Trust(String),
    /// Into the policy of a key, as one more statement, by the key's ARN.
    Key(String),
}

/// A policy document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The account that it is written in.
    pub account: String,
    /// Where it goes.
    pub attach: Attach,
    /// What it is for.
    pub why: String,
    /// The policy.
    pub policy: Value,
}

/// Why documents cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A resource policy is longer than AWS takes.
    #[error(
        "the policy of {0} would be {1} bytes; AWS takes {MOST_RESOURCE}: name fewer networks or endpoints"
    )]
    TooLong(String, usize),
    /// One statement of a role's policy is longer than AWS takes.
    #[error(
        "a statement of the policy of {0} would be {1} characters; AWS takes {MOST_MANAGED} in a document"
    )]
    StatementTooLong(String, usize),
    /// A trust policy is longer than AWS takes.
    #[error(
        "the trust policy of {0} would be {1} characters; AWS takes {MOST_TRUST}, or 4096 on request: name fewer \
         networks, or let fewer members with external ids of their own share the role"
    )]
    TrustTooLong(String, usize),
    /// A key of a member that the config does not have.
    #[error("there is no member {0:?} to which a key could belong")]
    NoMember(String),
}

/// All documents of a config, by account.
///
/// # Errors
/// A document that AWS would refuse for its length; a key of nobody.
pub fn documents(config: &Config, terms: &Terms) -> Result<Vec<Document>, PolicyError> {
    let known = |name: &str| name == STATE_KEY || config.member(name).is_some();
    if let Some(name) = terms.keys.keys().find(|name| !known(name)) {
        return Err(PolicyError::NoMember(name.clone()));
    }
    let principal = principal(config, terms);
    let mut writer = Writer {
        config,
        terms,
        principal,
        documents: Vec::new(),
        roles: BTreeMap::new(),
        assumed: BTreeMap::new(),
    };
    for (index, member) in config.members.iter().enumerate() {
        let needs = Needs::of_member(config, index, &terms.features);
        if !needs.actions.is_empty() {
            writer.member(member, &needs);
        }
    }
    writer.state();
    writer.feeds();
    let trusts: Vec<Document> = writer.assumed.iter().map(|(role, ids)| writer.trust(role, ids)).collect();
    let Writer { mut documents, roles, .. } = writer;
    documents.extend(trusts);
    for (role, grants) in roles {
        documents.extend(grants.documents(&role));
    }
    check_lengths(&documents)?;
    documents.sort_by(|a, b| a.account.cmp(&b.account));
    Ok(documents)
}

/// The role that the replicator runs as. A state table that is reached by a role does not tell in which account that
/// is.
#[must_use]
pub fn principal(config: &Config, terms: &Terms) -> String {
    let own = config.state.access.assume_role.is_none();
    let named = config.state.table.parse::<TableArn>().ok().filter(|_| own);
    let account = named.as_ref().map_or(UNKNOWN_ACCOUNT, |arn| &arn.account);
    let partition = config.members.first().map_or("aws", |member| &member.arn.partition);
    let default = || format!("arn:{partition}:iam::{account}:role/shardwalker");
    terms.principal.clone().unwrap_or_else(default)
}

/// The account in an ARN.
#[must_use]
pub fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// A role or a user, as its ARN names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Whether it is a user.
    pub user: bool,
    /// `/`, or such as `/team-a/`.
    pub path: String,
    /// Its name, which is one in its account whatever the path.
    pub name: &'a str,
}

impl<'a> Identity<'a> {
    /// The one that an ARN names.
    #[must_use]
    pub fn of(arn: &'a str) -> Self {
        let (kind, rest) =
            arn.splitn(6, ':').nth(5).and_then(|rest| rest.split_once('/')).unwrap_or(("role", arn));
        let (path, name) = match rest.rsplit_once('/') {
            Some((path, name)) => (format!("/{path}/"), name),
            None => ("/".to_owned(), rest),
        };
        Self { user: kind == "user", path, name }
    }

    /// How commands and files call its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        if self.user { "user" } else { "role" }
    }
}

struct Writer<'a> {
    config: &'a Config,
    terms: &'a Terms,
    principal: String,
    documents: Vec<Document>,
    /// What each role may do, by its ARN: the replicator's own, and those that it assumes.
    roles: BTreeMap<String, Grants>,
    /// The external ids with which each assumed role is assumed, by its ARN; `None` where it is without one.
    assumed: BTreeMap<String, BTreeSet<Option<String>>>,
}

impl Writer<'_> {
    fn member(&mut self, member: &Member, needs: &Needs) {
        let table = &member.arn;
        let role = self.caller(&member.access);
        let name = format!("member {}", member.name);
        let why = format!("{name}: {}", needs.whole_why());
        let assumed = member.access.assume_role.is_some();
        let grants = self.grants(&role);
        grants.add_table(table, needs);
        grants.why.push(why);
        // Within one account the identity policy is enough.
        let foreign = table.account != account_of(&role);
        if !assumed && foreign {
            self.share(table, &name, needs);
        }
        if let Some(key) = self.terms.keys.get(&member.name) {
            self.key(&name, table, key, &role);
        }
    }

    /// The resource policies of a table and its stream.
    fn share(&mut self, table: &TableArn, name: &str, needs: &Needs) {
        for on_stream in [false, true] {
            let mut actions = needs.on(on_stream);
            actions.retain(|action| action.shareable());
            if actions.is_empty() {
                continue;
            }
            let mut statement = allow(&actions, &resource(table, on_stream, None), Some(&self.principal));
            statement["Sid"] = json!(if on_stream { "ShardwalkerStream" } else { "ShardwalkerTable" });
            self.narrow(&mut statement, true);
            let attach = if on_stream { Attach::Stream(table.clone()) } else { Attach::Table(table.clone()) };
            let why = format!("{name}: {}", needs.why(on_stream));
            let policy = document(vec![statement]);
            self.documents.push(Document { account: table.account.clone(), attach, why, policy });
        }
    }

    fn state(&mut self) {
        let needs = Needs::of_state(&self.terms.features);
        let access = &self.config.state.access;
        let role = self.caller(access);
        let table = self.config.state.table.parse().unwrap_or_else(|_| TableArn {
            partition: self.principal.split(':').nth(1).unwrap_or("aws").to_owned(),
            region: access.region.clone(),
            account: account_of(&role).to_owned(),
            table: self.config.state.table.clone(),
        });
        let grants = self.grants(&role);
        grants.add_table(&table, &needs);
        grants.why.push(format!("state table: {}", needs.whole_why()));
        if table.account != account_of(&role) {
            self.share(&table, "state table", &needs);
        }
        let of_member = self.config.member(STATE_KEY).is_some();
        if let Some(key) = self.terms.keys.get(STATE_KEY).filter(|_| !of_member) {
            self.key("state table", &table, key, &role);
        }
    }

    /// Feeds in buckets; those in directories need nothing of AWS.
    fn feeds(&mut self) {
        for feed in feeds::used(self.config) {
            let FeedPlace::S3 { bucket, prefix, access } = &feed.place else { continue };
            let role = self.caller(access);
            let partition = role.split(':').nth(1).unwrap_or("aws").to_owned();
            let grants = self.grants(&role);
            for (actions, resource) in feeds::statements(&partition, bucket, prefix) {
                // The conditions on roles are about requests to DynamoDB.
                grants.add(actions, &resource, Value::Null);
            }
            grants.why.push(format!("feed {}: writes its files, and reads what it wrote", feed.name));
        }
    }

    /// The role that makes the calls of an access, which must be assumed when it is not the replicator's own.
    fn caller(&mut self, access: &Access) -> String {
        let Some(role) = &access.assume_role else { return self.principal.clone() };
        self.assumed.entry(role.role_arn.clone()).or_default().insert(role.external_id.clone());
        let own = self.principal.clone();
        self.grants(&own).add(vec!["sts:AssumeRole".to_owned()], &role.role_arn, Value::Null);
        role.role_arn.clone()
    }

    fn grants(&mut self, role: &str) -> &mut Grants {
        let narrow = if role == self.principal { Value::Null } else { self.conditions(true) };
        self.roles.entry(role.to_owned()).or_insert_with(|| Grants { narrow, ..Grants::default() })
    }

    fn trust(&self, role: &str, ids: &BTreeSet<Option<String>>) -> Document {
        let mut statement = json!({
            "Sid": "Shardwalker", "Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": { "AWS": self.principal },
        });
        // STS has VPC endpoints of its own: those of DynamoDB narrow what the role may do instead.
        self.narrow(&mut statement, false);
        let named: Vec<&String> = ids.iter().flatten().collect();
        let why = match named.as_slice() {
            // The request of who has none names none, and no condition on it could hold.
            _ if ids.contains(&None) && !named.is_empty() => {
                "lets the replicator's role assume this one, without an external id, because one of the members that \
                 share it has none"
            }
            [] => "lets the replicator's role assume this one",
            [id] => {
                put(&mut statement["Condition"], "StringEquals", "sts:ExternalId", json!(id));
                "lets the replicator's role assume this one, with the external id only"
            }
            ids => {
                put(&mut statement["Condition"], "StringEquals", "sts:ExternalId", json!(ids));
                "lets the replicator's role assume this one, with the external ids of its members only"
            }
        };
        Document {
            account: account_of(role).to_owned(),
            attach: Attach::Trust(role.to_owned()),
            why: why.to_owned(),
            policy: document(vec![statement]),
        }
    }

    /// What lets `role` use the key of a table. Within one account the key's policy leaves that to the role's own, unless
    /// somebody has narrowed it; a role that was made for this is named all the same.
    fn key(&mut self, name: &str, table: &TableArn, key: &str, role: &str) {
        let through = through(table);
        self.grants(role).add(KEY_ACTIONS.map(str::to_owned).to_vec(), key, through.clone());
        if account_of(key) == account_of(role) && role == self.principal {
            return;
        }
        let statement = json!({
            "Sid": "Shardwalker", "Effect": "Allow", "Principal": { "AWS": role },
            "Action": KEY_ACTIONS, "Resource": "*", "Condition": through,
        });
        self.documents.push(Document {
            account: account_of(key).to_owned(),
            attach: Attach::Key(key.to_owned()),
            why: format!("{name}: its items are encrypted with this key"),
            policy: document(vec![statement]),
        });
    }

    /// What narrows a statement that lets others in; `network` where the request goes to DynamoDB.
    fn narrow(&self, statement: &mut Value, network: bool) {
        let mut conditions = self.conditions(network);
        if let Some(organization) = &self.terms.organization {
            put(&mut conditions, "StringEquals", "aws:PrincipalOrgID", json!(organization));
        }
        if !conditions.is_null() {
            statement["Condition"] = conditions;
        }
    }

    fn conditions(&self, to_dynamodb: bool) -> Value {
        let mut conditions = Value::Null;
        if to_dynamodb && !self.terms.endpoints.is_empty() {
            put(&mut conditions, "StringEquals", "aws:SourceVpce", json!(self.terms.endpoints));
        }
        if !self.terms.networks.is_empty() {
            put(&mut conditions, "IpAddress", "aws:SourceIp", json!(self.terms.networks));
        }
        conditions
    }
}

/// Only by way of DynamoDB.
fn through(table: &TableArn) -> Value {
    let domain = if table.partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
    json!({ "StringEquals": { "kms:ViaService": format!("dynamodb.{}.{domain}", table.region) } })
}

/// What use of a customer key through DynamoDB takes.
const KEY_ACTIONS: [&str; 3] = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey*"];

fn put(conditions: &mut Value, operator: &str, key: &str, value: Value) {
    conditions[operator][key] = value;
}

/// What the statements of a role's document may take, and what is around them the rest.
const PACK: usize = MOST_MANAGED - 64;
/// Resources of a statement: few enough for statements to fill a document well.
const RESOURCES: usize = 20;

/// Resources in lists of no more than [`RESOURCES`], and than `room` characters as JSON where more than one would take more.
fn cut(resources: BTreeSet<String>, room: usize) -> Vec<Vec<String>> {
    let mut lists: Vec<(usize, Vec<String>)> = Vec::new();
    for resource in resources {
        let length = json!(resource).to_string().len() + 1;
        let fits =
            |(so_far, list): &&mut (usize, Vec<String>)| list.len() < RESOURCES && *so_far + length <= room;
        match lists.last_mut().filter(fits) {
            Some((so_far, list)) => {
                *so_far += length;
                list.push(resource);
            }
            None => lists.push((length, vec![resource])),
        }
    }
    lists.into_iter().map(|(_, list)| list).collect()
}

/// What a role is allowed: resources by actions and condition, so that a document is as short as it can be.
#[derive(Debug, Default)]
struct Grants {
    /// On every statement about a table.
    narrow: Value,
    /// What it is all for.
    why: Vec<String>,
    /// Actions and condition (as text, for its order) to resources.
    by_actions: BTreeMap<(Vec<String>, String), BTreeSet<String>>,
}

impl Grants {
    fn add_table(&mut self, table: &TableArn, needs: &Needs) {
        for on_stream in [false, true] {
            let actions = needs.on(on_stream);
            if !actions.is_empty() {
                let names = actions.into_iter().map(Action::name).collect();
                self.add(names, &resource(table, on_stream, None), self.narrow.clone());
            }
        }
    }

    fn add(&mut self, actions: Vec<String>, resource: &str, condition: Value) {
        self.by_actions.entry((actions, condition.to_string())).or_default().insert(resource.to_owned());
    }

    /// As many documents as their bound takes; most often one.
    fn documents(self, role: &str) -> Vec<Document> {
        let mut packs: Vec<(usize, Vec<Value>)> = Vec::new();
        for ((actions, condition), resources) in self.by_actions {
            let of = |resources: &[String]| {
                let mut statement = json!({ "Effect": "Allow", "Action": actions, "Resource": resources });
                if let Ok(condition @ Value::Object(_)) = serde_json::from_str(&condition) {
                    statement["Condition"] = condition;
                }
                statement
            };
            let room = PACK.saturating_sub(of(&[]).to_string().len() + 1);
            for resources in cut(resources, room) {
                let statement = of(&resources);
                let length = statement.to_string().len() + 1;
                match packs.last_mut().filter(|(so_far, _)| so_far + length <= PACK) {
                    Some((so_far, pack)) => {
                        *so_far += length;
                        pack.push(statement);
                    }
                    None => packs.push((length, vec![statement])),
                }
            }
        }
        let (of, why) = (packs.len(), self.why.join(". "));
        let document = |(index, (_, statements)): (usize, (usize, Vec<Value>))| Document {
            account: account_of(role).to_owned(),
            attach: Attach::Role(role.to_owned()),
            why: if of == 1 {
                why.clone()
            } else {
                format!(
                    "{why} (part {} of {of}: a managed policy holds {MOST_MANAGED} characters)",
                    index + 1
                )
            },
            policy: document(statements),
        };
        packs.into_iter().enumerate().map(document).collect()
    }
}

fn check_lengths(documents: &[Document]) -> Result<(), PolicyError> {
    for document in documents {
        match &document.attach {
            Attach::Table(arn) | Attach::Stream(arn) => {
                // As it is saved, with the end of its last line.
                let length = format!("{:#}\n", document.policy).len();
                if length > MOST_RESOURCE {
                    return Err(PolicyError::TooLong(arn.to_string(), length));
                }
            }
            Attach::Role(role) => {
                let length = document.policy.to_string().len();
                if length > MOST_MANAGED {
                    return Err(PolicyError::StatementTooLong(role.clone(), length));
                }
            }
            Attach::Trust(role) => {
                let length = document.policy.to_string().len();
                if length > MOST_TRUST {
                    return Err(PolicyError::TrustTooLong(role.clone(), length));
                }
            }
            Attach::Key(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
