//! The accounts of the demo: tables, streams, users, and the policies that let the replicator in.
//!
//! Owns what an operator would set up by hand. Each member is in an account of its own and the replicator in a
//! fourth; nobody may do more than his part: the application writes the source, the replicator reads its stream
//! and writes the peers, a reader in each peer's account reads its own table.

use super::DemoError;
use crate::access::policy::{self, Attach, Terms};
use crate::aws::Base;
use crate::config::{Config, Member, TableArn};
use crate::failure::{Class, Failure};
use crate::sandbox::{self, Sandbox};
use crate::state::{PK, SK};
use aws_config::SdkConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};

/// The config that the demo runs with.
pub const CONFIG: &str = include_str!("demo.toml");
/// The partition key of the members.
pub const KEY: &str = "iata";
/// The replicator's account.
pub const REPLICATOR: &str = "444444444444";
/// Shards of the source's stream at the beginning.
const SHARDS: u32 = 4;

/// The demo's accounts, ready for a load.
pub struct Stage {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What the service runs with.
    pub config: Config,
    /// The role that the service runs as.
    pub role: String,
    /// How the service calls.
    pub base: Base,
}

impl Stage {
    /// Makes accounts, tables and identities, but no resource policy yet: the replicator is still locked out.
    ///
    /// # Errors
    /// What the sandbox or the config's parser says.
    pub async fn build(seed: u64) -> Result<Self, DemoError> {
        Self::of(CONFIG, seed).await
    }

    /// The same for another config.
    ///
    /// # Errors
    /// What the sandbox or the config's parser says.
    pub async fn of(config: &str, seed: u64) -> Result<Self, DemoError> {
        let config = Config::parse(config, "demo.toml", &|_| None)?;
        let options =
            sandbox::Options { seed, initial_shards: SHARDS, stream_limits: true, ..Default::default() };
        let sandbox = Sandbox::new(options)?;
        for (index, member) in config.members.iter().enumerate() {
            let is_source = config.routes.iter().any(|route| route.from == index);
            let view = is_source.then_some("NEW_AND_OLD_IMAGES");
            let TableArn { account, region, table, .. } = &member.arn;
            sandbox.create_table(account, region, table, &[KEY], view)?;
        }
        let state = &config.state;
        sandbox.create_table(REPLICATOR, &state.access.region, &state.table, &[PK, SK], None)?;
        let trust = json!({
            "Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": { "AWS": format!("arn:aws:iam::{REPLICATOR}:root") },
        });
        let role = format!("arn:aws:iam::{REPLICATOR}:role/shardwalker");
        let documents = policy::documents(&config, &terms(&role))?;
        let own = documents.iter().find(|document| document.attach == Attach::Role(role.clone()));
        let own = own.map_or_else(|| document(Vec::new()), |own| own.policy.to_string());
        let role = sandbox.role(REPLICATOR, "shardwalker", &document(vec![trust]), &own)?;
        let operator = sandbox.sdk_config(&sandbox.admin(REPLICATOR, "operator")?, &state.access.region);
        let session =
            AssumeRoleProvider::builder(&role).session_name("demo").configure(&operator).build().await;
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(session)),
            http: Some(sandbox.http_client()),
            request_timeout: None,
        };
        Ok(Self { sandbox, config, role, base })
    }

    /// Attaches the resource policies to tables and stream: what is needed, and no more.
    ///
    /// # Errors
    /// What the sandbox says.
    pub fn let_in(&self) -> Result<(), DemoError> {
        for document in policy::documents(&self.config, &terms(&self.role))? {
            let on = match document.attach {
                Attach::Table(table) => Some(table.to_string()),
                Attach::Stream(table) => self.sandbox.stream_arn(&table.to_string())?,
                Attach::Role(_) | Attach::Trust(_) | Attach::Key(_) => None,
            };
            if let Some(on) = on {
                self.sandbox.put_resource_policy(&on, &document.policy.to_string())?;
            }
        }
        Ok(())
    }

    /// At how many of the members' tables the replicator is denied.
    ///
    /// # Errors
    /// A failure other than a denial.
    pub async fn denied(&self) -> Result<usize, DemoError> {
        let aws = crate::aws::Aws::new(self.base.clone());
        let mut denied = 0;
        for member in &self.config.members {
            let client = aws.clients(&member.access).await.tables;
            match client
                .describe_table()
                .table_name(member.arn.to_string())
                .send()
                .await
                .map_err(Failure::from)
            {
                Ok(_) => {}
                Err(failure) if failure.class == Class::Denied => denied += 1,
                Err(failure) => return Err(DemoError::Call { who: "the replicator", failure }),
            }
        }
        Ok(denied)
    }

    /// The source member.
    #[must_use]
    pub fn source(&self) -> &Member {
        &self.config.members[self.config.routes[0].from]
    }

    /// The peers, in the route's order.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.config.routes[0].to.iter().map(|&index| &self.config.members[index])
    }

    /// A client of somebody in a member's own account who may do `actions` on its table.
    ///
    /// # Errors
    /// What the sandbox says.
    pub fn local(
        &self,
        member: &Member,
        name: &str,
        actions: &[&str],
    ) -> Result<aws_sdk_dynamodb::Client, DemoError> {
        let TableArn { account, region, .. } = &member.arn;
        let allow = json!({ "Effect": "Allow", "Action": actions, "Resource": member.arn.to_string() });
        let keys = self.sandbox.user(account, name, &document(vec![allow]))?;
        let config: SdkConfig = self.sandbox.sdk_config(&keys, region);
        Ok(aws_sdk_dynamodb::Client::new(&config))
    }
}

fn terms(role: &str) -> Terms {
    Terms { principal: Some(role.to_owned()), ..Terms::default() }
}

fn document(statements: Vec<Value>) -> String {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::service::{Options, Service, ServiceError};
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    async fn build(stage: &Stage) -> Result<Service, ServiceError> {
        let mut config = stage.config.clone();
        config.access_patience = Duration::ZERO;
        let options =
            Options { base: stage.base.clone(), create_state_table: false, clock: Clock::system(), seed: 1 };
        Box::pin(Service::build(config, options, CancellationToken::new())).await
    }

    #[tokio::test]
    async fn nothing_works_without_the_resource_policies() {
        let stage = Stage::build(1).await.unwrap();
        assert_eq!(stage.denied().await.unwrap(), 3);
        let Err(ServiceError::Access(findings)) = build(&stage).await else {
            panic!("it must be locked out")
        };
        let members: Vec<&str> = findings.0.iter().map(|finding| &*finding.member).collect();
        for member in ["source", "near", "far"] {
            assert!(members.contains(&member), "{findings}");
        }
        stage.let_in().unwrap();
        assert_eq!(stage.denied().await.unwrap(), 0);
        build(&stage).await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn nobody_may_do_more_than_his_part() {
        let stage = Stage::build(1).await.unwrap();
        stage.let_in().unwrap();
        let aws = crate::aws::Aws::new(stage.base.clone());
        for member in &stage.config.members {
            let client = aws.clients(&member.access).await.tables;
            let scan = client.scan().table_name(member.arn.to_string()).send().await;
            assert_eq!(Failure::from(scan.unwrap_err()).class, Class::Denied, "{}", member.name);
        }
        let source = stage.source();
        let client = aws.clients(&source.access).await.tables;
        let key = aws_sdk_dynamodb::types::AttributeValue::S("ATL".into());
        let put = client.put_item().table_name(source.arn.to_string()).item(KEY, key).send().await;
        assert_eq!(Failure::from(put.unwrap_err()).class, Class::Denied);
    }
}
