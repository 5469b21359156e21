//! A sandbox from a file: accounts, users, roles, tables, policies, faults.
//!
//! Owns the file's form (TOML, unknown keys are errors) and the default: three accounts, each with a user that
//! may do everything. Promises to name what could not be set up.

use super::error::{ApiError, ApiResult};
use super::faults::{Rule, Weather};
use super::iam::Credentials;
use super::{EVERYTHING, Options, Sandbox};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// The Region of tables that name none.
pub const DEFAULT_REGION: &str = "us-east-1";

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Setup {
    /// The seed of everything that looks random, keys too.
    pub seed: u64,
    /// Shards of a new stream.
    pub initial_shards: u32,
    /// Seconds until a shard rolls over; 0 for never.
    pub shard_lifetime_s: u64,
    /// Whether reading streams is limited as AWS does.
    pub stream_limits: bool,
    /// Whether signatures are checked.
    pub verify_signatures: bool,
    /// The accounts.
    #[serde(rename = "account")]
    pub accounts: Vec<AccountSetup>,
    /// The faults, in the order that they are tried.
    #[serde(rename = "fault")]
    pub faults: Vec<Rule>,
    /// How streams and policies behave.
    pub weather: Weather,
}

impl Default for Setup {
    fn default() -> Self {
        let options = Options::default();
        let account = |id: &str| AccountSetup {
            id: id.into(),
            organization: None,
            users: vec![UserSetup { name: "admin".into(), policy: Value::Null }],
            roles: Vec::new(),
            tables: Vec::new(),
        };
        Self {
            seed: options.seed,
            initial_shards: options.initial_shards,
            shard_lifetime_s: options.shard_lifetime.map_or(0, |lifetime| lifetime.as_secs()),
            stream_limits: options.stream_limits,
            verify_signatures: options.verify_signatures,
            accounts: ["111111111111", "222222222222", "333333333333"].map(account).into(),
            faults: Vec::new(),
            weather: Weather::default(),
        }
    }
}

/// An account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountSetup {
    /// Its 12 digits.
    pub id: String,
    /// Its organization, such as `o-example`.
    #[serde(default)]
    pub organization: Option<String>,
    /// Its users; keys of each are printed.
    #[serde(default, rename = "user")]
    pub users: Vec<UserSetup>,
    /// Its roles.
    #[serde(default, rename = "role")]
    pub roles: Vec<RoleSetup>,
    /// Its tables.
    #[serde(default, rename = "table")]
    pub tables: Vec<TableSetup>,
}

/// A user. Policies are JSON text or the same as a TOML table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSetup {
    /// Its name.
    pub name: String,
    /// Its identity policy; without one it may do everything.
    #[serde(default)]
    pub policy: Value,
}

/// A role.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSetup {
    /// Its name.
    pub name: String,
    /// Who may assume it.
    pub trust: Value,
    /// Its identity policy; without one it may do everything.
    #[serde(default)]
    pub policy: Value,
}

/// A table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSetup {
    /// Its name.
    pub name: String,
    /// Its Region.
    #[serde(default = "default_region")]
    pub region: String,
    /// Its key attributes, the partition key first: `id`, or `at:N` for another type than a string.
    pub keys: Vec<String>,
    /// Its stream's view, such as `NEW_AND_OLD_IMAGES`; no stream without.
    #[serde(default)]
    pub stream: Option<String>,
    /// The table's resource policy.
    #[serde(default)]
    pub policy: Value,
    /// The stream's resource policy.
    #[serde(default)]
    pub stream_policy: Value,
}

fn default_region() -> String {
    DEFAULT_REGION.into()
}

/// What was set up, as it is printed.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// The accounts.
    pub accounts: Vec<ReadyAccount>,
}

/// An account that was set up.
#[derive(Debug, Clone, Serialize)]
pub struct ReadyAccount {
    /// Its 12 digits.
    pub id: String,
    /// Its users.
    pub users: Vec<ReadyUser>,
    /// The ARNs of its roles.
    pub roles: Vec<String>,
    /// The ARNs of its tables.
    pub tables: Vec<String>,
}

/// A user that was set up.
#[derive(Debug, Clone, Serialize)]
pub struct ReadyUser {
    /// Its name.
    pub name: String,
    /// The access key's id.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
}

impl Setup {
    /// Reads a file's text.
    ///
    /// # Errors
    /// With the line, when it is not such a file.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The options of a sandbox for this setup.
    #[must_use]
    pub fn options(&self) -> Options {
        let lifetime = self.shard_lifetime_s;
        Options {
            seed: self.seed,
            start: None,
            initial_shards: self.initial_shards,
            shard_lifetime: (lifetime > 0).then(|| Duration::from_secs(lifetime)),
            stream_limits: self.stream_limits,
            verify_signatures: self.verify_signatures,
        }
    }

    /// Makes a sandbox with everything in it.
    ///
    /// # Errors
    /// The first thing that could not be set up, by name.
    pub fn build(&self) -> ApiResult<(Sandbox, Ready)> {
        let sandbox = Sandbox::new(self.options())?;
        let accounts =
            self.accounts.iter().map(|account| account.build(&sandbox)).collect::<Result<_, _>>()?;
        self.faults.iter().for_each(|rule| sandbox.faults().add(rule.clone()));
        sandbox.faults().set_weather(self.weather);
        Ok((sandbox, Ready { accounts }))
    }
}

impl AccountSetup {
    fn build(&self, sandbox: &Sandbox) -> ApiResult<ReadyAccount> {
        let id = &self.id;
        sandbox.account(id)?;
        if let Some(organization) = &self.organization {
            sandbox.join_organization(id, organization)?;
        }
        let mut ready =
            ReadyAccount { id: id.clone(), users: Vec::new(), roles: Vec::new(), tables: Vec::new() };
        for UserSetup { name, policy } in &self.users {
            let made = sandbox.user(id, name, &text(policy).unwrap_or_else(|| EVERYTHING.into()));
            let Credentials { access_key_id, secret_access_key, .. } =
                made.map_err(|error| in_place(error, &format!("user {name} of account {id}")))?;
            ready.users.push(ReadyUser { name: name.clone(), access_key_id, secret_access_key });
        }
        for RoleSetup { name, trust, policy } in &self.roles {
            let policy = text(policy).unwrap_or_else(|| EVERYTHING.into());
            let made = sandbox.role(id, name, &text(trust).unwrap_or_default(), &policy);
            ready.roles.push(made.map_err(|error| in_place(error, &format!("role {name} of account {id}")))?);
        }
        for table in &self.tables {
            let made = table.build(sandbox, id);
            let place = format!("table {} of account {id}", table.name);
            ready.tables.push(made.map_err(|error| in_place(error, &place))?);
        }
        Ok(ready)
    }
}

impl TableSetup {
    fn build(&self, sandbox: &Sandbox, account: &str) -> ApiResult<String> {
        let typed = self.keys.iter().map(|key| key.split_once(':').unwrap_or((key, "S")));
        let mut attributes = Vec::new();
        let mut schema = Vec::new();
        for ((name, kind), role) in typed.zip(["HASH", "RANGE"]) {
            attributes.push(json!({"AttributeName": name, "AttributeType": kind}));
            schema.push(json!({"AttributeName": name, "KeyType": role}));
        }
        let mut body = json!({
            "TableName": self.name, "KeySchema": schema, "AttributeDefinitions": attributes,
            "BillingMode": "PAY_PER_REQUEST",
        });
        if let Some(view) = &self.stream {
            body["StreamSpecification"] = json!({"StreamEnabled": true, "StreamViewType": view});
        }
        let made = sandbox.call(account, &self.region, "CreateTable", body)?;
        let description = &made["TableDescription"];
        let arn = description["TableArn"].as_str().unwrap_or_default();
        if let Some(policy) = text(&self.policy) {
            sandbox.put_resource_policy(arn, &policy)?;
        }
        if let Some(policy) = text(&self.stream_policy) {
            let stream = description["LatestStreamArn"].as_str();
            let stream = stream.ok_or_else(|| ApiError::validation("stream_policy without a stream"))?;
            sandbox.put_resource_policy(stream, &policy)?;
        }
        Ok(arn.into())
    }
}

/// A policy's text, whether it was written as text or as a table.
fn text(policy: &Value) -> Option<String> {
    match policy {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        table => Some(table.to_string()),
    }
}

fn in_place(error: ApiError, place: &str) -> ApiError {
    ApiError { message: format!("{place}: {}", error.message), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_sets_everything_up() {
        let file = r#"
            seed = 3
            [[account]]
            id = "111111111111"
            organization = "o-one"
            [[account.user]]
            name = "app"
            policy = '{"Version":"2012-10-17","Statement":[]}'
            [[account.role]]
            name = "reader"
            trust.Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal.AWS = "222222222222" }]
            [[account.table]]
            name = "orders"
            region = "eu-west-1"
            keys = ["id", "at:N"]
            stream = "NEW_AND_OLD_IMAGES"
            [account.table.stream_policy]
            Version = "2012-10-17"
            [[account.table.stream_policy.Statement]]
            Effect = "Allow"
            Action = "dynamodb:GetRecords"
            Resource = "*"
            Principal.AWS = "222222222222"
            [[fault]]
            operation = "PutItem"
            probability = 0.1
            effect = "drop_answer"
            [[fault]]
            effect = { delay_ms = 5 }
            [weather]
            empty_pages = 0.5
        "#;
        let (sandbox, ready) = Setup::parse(file).unwrap().build().unwrap();
        let account = &ready.accounts[0];
        assert_eq!(account.tables, ["arn:aws:dynamodb:eu-west-1:111111111111:table/orders"]);
        assert_eq!(account.roles, ["arn:aws:iam::111111111111:role/reader"]);
        assert_eq!(account.users[0].name, "app");
        assert_eq!(sandbox.faults().rules().len(), 2);
        let stream = sandbox.stream_arn(&account.tables[0]).unwrap().unwrap();
        let body = json!({"ResourceArn": stream});
        let policy = sandbox.call("111111111111", "eu-west-1", "GetResourcePolicy", body).unwrap();
        assert!(policy["Policy"].as_str().unwrap().contains("GetRecords"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_documented_file_works() {
        let document = include_str!("../../docs/sandbox.md");
        let example = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let (sandbox, ready) = Setup::parse(example.unwrap()).unwrap().build().unwrap();
        assert_eq!(sandbox.options().seed, 7);
        assert_eq!(ready.accounts[0].tables.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn problems_say_where() {
        let unknown = Setup::parse("[[account]]\nid = \"1\"\nuser_name = \"x\"").unwrap_err().to_string();
        assert!(unknown.contains("user_name") && unknown.contains("line 3"), "{unknown}");
        let bad = "[[account]]\nid = \"111111111111\"\n[[account.user]]\nname = \"x\"\npolicy = \"{\"";
        let error = Setup::parse(bad).unwrap().build().unwrap_err();
        assert!(error.message.starts_with("user x of account 111111111111: "), "{error}");
    }
}
