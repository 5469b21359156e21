//! The sandbox: several AWS accounts in one process, with everything that crosses their borders.
//!
//! Each account has tables in any Region, IAM users and roles, and streams with many shards. A gateway in front
//! takes the caller from the request's signature, evaluates identity and resource policies, and answers in
//! AWS's words. Chance comes from one seed and time from one clock, so a run can be repeated.
//!
//! The sandbox shares no code with the replicator, so that a mistake in one cannot hide in the other. It owns
//! what AWS would own; it does not do PartiQL, backups, global tables, encryption keys or capacity.
//!
//! ```
//! # tokio_test(async {
//! use shardwalker::sandbox::{Options, Sandbox};
//! let sandbox = Sandbox::new(Options::default()).unwrap();
//! let keys = sandbox.admin("111111111111", "me").unwrap();
//! let dynamodb = aws_sdk_dynamodb::Client::new(&sandbox.sdk_config(&keys, "eu-west-1"));
//! let tables = dynamodb.list_tables().send().await.unwrap();
//! assert!(tables.table_names().is_empty());
//! # });
//! # fn tokio_test(f: impl Future<Output = ()>) {
//! #     tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
//! # }
//! ```

pub mod arn;
pub mod error;
pub mod faults;
pub mod gateway;
pub mod iam;
pub mod pause;
pub mod random;
pub mod setup;
pub mod streams;
pub mod tables;
pub mod time;

use arn::{Arn, Part};
use aws_config::SdkConfig;
use error::{ApiError, ApiResult};
use faults::Faults;
use gateway::sigv4::Verifier;
use gateway::{Counters, Source};
use iam::api::set_inline;
use iam::{Credentials, Directory, Document, Role, User};
use random::Chance;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};
use streams::{Reshard, ShardInfo};
use tables::engine::item_json;
use tables::{Environment, Region};
use time::VirtualClock;

/// How a sandbox behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed of everything that looks random.
    pub seed: u64,
    /// What the clock shows first; the machine's time if absent.
    pub start: Option<SystemTime>,
    /// Shards of a new stream.
    pub initial_shards: u32,
    /// How long a shard lives before it rolls over; for ever if absent.
    pub shard_lifetime: Option<Duration>,
    /// Whether streams are limited as AWS's are: 5 reads and 2 MB a second for a shard, 10 DescribeStream
    /// calls a second for an account.
    pub stream_limits: bool,
    /// Whether signatures are checked; the caller is taken from the access key in any case.
    pub verify_signatures: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            start: None,
            initial_shards: 4,
            shard_lifetime: Some(Duration::from_secs(4 * 3600)),
            stream_limits: false,
            verify_signatures: true,
        }
    }
}

type SharedRegion = Arc<Mutex<Region>>;

struct Inner {
    options: Options,
    env: Environment,
    directory: RwLock<Directory>,
    /// By account and Region.
    regions: RwLock<BTreeMap<(String, String), SharedRegion>>,
    verifier: Verifier,
    counters: Counters,
    requests: AtomicU64,
}

/// A set of AWS accounts. Clones are handles to the same one.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("options", &self.0.options).finish_non_exhaustive()
    }
}

/// A policy that allows everything.
const EVERYTHING: &str =
    r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#;

impl Sandbox {
    /// A sandbox without accounts. Under tokio's paused time it must be made within the runtime.
    ///
    /// # Errors
    /// Never with a machine that has memory left; what the engine says otherwise.
    pub fn new(options: Options) -> ApiResult<Self> {
        let start = options.start.unwrap_or_else(|| crate::clock::Clock::system().now());
        let env = Environment {
            clock: VirtualClock::starting_at(start),
            chance: Chance::seeded(options.seed),
            // Of its own, so that what else is drawn does not move the faults.
            faults: Faults::none(Chance::seeded(options.seed.wrapping_add(1))),
            initial_shards: options.initial_shards,
            shard_lifetime: options.shard_lifetime,
            limits: options.stream_limits,
        };
        Ok(Self(Arc::new(Inner {
            options,
            env,
            directory: RwLock::default(),
            regions: RwLock::default(),
            verifier: Verifier::default(),
            counters: Counters::default(),
            requests: AtomicU64::new(0),
        })))
    }

    /// The options that it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &VirtualClock {
        &self.0.env.clock
    }

    /// Moves the clock forward: records age, iterators and sessions expire, policies arrive.
    pub fn advance(&self, by: Duration) {
        self.clock().advance(by);
    }

    /// The faults and the weather.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.env.faults
    }

    /// How often each operation was asked for.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    fn chance(&self) -> &Chance {
        &self.0.env.chance
    }

    fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    fn count(&self, operation: &str, account: &str, failed: bool) {
        self.0.counters.add(operation, account, failed);
    }

    fn next_request_id(&self) -> String {
        format!("{:032X}", self.0.requests.fetch_add(1, Ordering::Relaxed))
    }

    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.0.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_mut(&self) -> RwLockWriteGuard<'_, Directory> {
        self.0.directory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Region of an account, made when it is first asked for; `None` when there is no such account.
    fn region(&self, account: &str, region: &str) -> Option<SharedRegion> {
        let key = (account.to_owned(), region.to_owned());
        if let Some(found) = self.0.regions.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Some(found.clone());
        }
        if !self.directory().accounts().contains_key(account) {
            return None;
        }
        let mut regions = self.0.regions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = regions.get(&key) {
            return Some(found.clone());
        }
        let made = Arc::new(Mutex::new(Region::new(account, region, self.0.env.clone()).ok()?));
        regions.insert(key, made.clone());
        Some(made)
    }

    /// Does something with the Region of a table, or refuses an ARN that names none.
    fn with_table<T>(&self, arn: &str, act: impl FnOnce(&mut Region, &Arn) -> ApiResult<T>) -> ApiResult<T> {
        let parsed = Arn::parse(arn).ok_or_else(|| ApiError::validation(format!("Invalid ARN: {arn}")))?;
        let region = self.region(&parsed.account, &parsed.region);
        let region = region.ok_or_else(|| ApiError::not_found(format!("no account of {arn}")))?;
        let mut region: MutexGuard<'_, Region> = region.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut region, &parsed)
    }

    // ---- accounts -------------------------------------------------------------------------------------------

    /// The account's root keys, which may do everything in it; makes the account if it is new.
    ///
    /// # Errors
    /// When the id is not 12 digits.
    pub fn account(&self, id: &str) -> ApiResult<Credentials> {
        let mut directory = self.directory_mut();
        directory.ensure(id)?;
        Ok(directory.root_key(id, self.chance()))
    }

    /// Puts an account into an organization, such as `o-example`.
    ///
    /// # Errors
    /// When the id is not 12 digits.
    pub fn join_organization(&self, account: &str, organization: &str) -> ApiResult<()> {
        self.directory_mut().ensure(account)?.organization = Some(organization.into());
        Ok(())
    }

    /// Keys of a user with this policy; makes the account and the user if they are new, and replaces the policy.
    ///
    /// # Errors
    /// When the policy is malformed.
    pub fn user(&self, account: &str, name: &str, policy: &str) -> ApiResult<Credentials> {
        let document = Document::read(policy)?;
        let (now, delay) = (self.clock().now_ms(), self.faults().weather().policy_delay_ms);
        let mut directory = self.directory_mut();
        let users = &mut directory.ensure(account)?.users;
        let user = users.entry(name.into()).or_insert_with(|| User::new(now, self.chance()));
        set_inline(&mut user.policies, "inline", Some(document), now, delay);
        directory.user_key(account, name, self.chance())
    }

    /// Keys of a user who may do everything that identity policies can allow.
    ///
    /// # Errors
    /// When the account's id is not 12 digits.
    pub fn admin(&self, account: &str, name: &str) -> ApiResult<Credentials> {
        self.user(account, name, EVERYTHING)
    }

    /// The ARN of a role with this trust policy and this identity policy, made or replaced.
    ///
    /// # Errors
    /// When a policy is malformed.
    pub fn role(&self, account: &str, name: &str, trust: &str, policy: &str) -> ApiResult<String> {
        let (trust, document) = (Document::read(trust)?, Document::read(policy)?);
        let (now, delay) = (self.clock().now_ms(), self.faults().weather().policy_delay_ms);
        let mut directory = self.directory_mut();
        let roles = &mut directory.ensure(account)?.roles;
        let mut role = Role::new(trust, 3600, now, self.chance());
        set_inline(&mut role.policies, "inline", Some(document), now, delay);
        roles.insert(name.into(), role);
        Ok(format!("arn:aws:iam::{account}:role/{name}"))
    }

    /// The configuration of an AWS SDK client that calls this sandbox with these keys, in the process, without
    /// the SDK's own retries.
    #[must_use]
    pub fn sdk_config(&self, keys: &Credentials, region: &str) -> SdkConfig {
        self.sdk_config_from(keys, region, Source::default())
    }

    /// The same for a caller somewhere else.
    #[must_use]
    pub fn sdk_config_from(&self, keys: &Credentials, region: &str, source: Source) -> SdkConfig {
        use aws_credential_types::provider::SharedCredentialsProvider;
        let keys = aws_credential_types::Credentials::from(keys.clone());
        SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new(region.to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .retry_config(aws_config::retry::RetryConfig::disabled())
            .timeout_config(aws_config::timeout::TimeoutConfig::disabled())
            // It would take a delay in virtual time for a stalled connection.
            .stalled_stream_protection(
                aws_config::stalled_stream_protection::StalledStreamProtectionConfig::disabled(),
            )
            .time_source(self.clock().clone())
            .http_client(self.http_client_from(source))
            .build()
    }

    // ---- tables and streams ---------------------------------------------------------------------------------

    /// Creates a table on demand, with string keys and, if a view is named, a stream. Returns its ARN.
    ///
    /// # Errors
    /// What CreateTable answers.
    pub fn create_table(
        &self,
        account: &str,
        region: &str,
        name: &str,
        keys: &[&str],
        view: Option<&str>,
    ) -> ApiResult<String> {
        let kinds = ["HASH", "RANGE"];
        let schema: Vec<Value> =
            keys.iter().zip(kinds).map(|(k, kind)| json!({"AttributeName": k, "KeyType": kind})).collect();
        let attributes: Vec<Value> =
            keys.iter().map(|k| json!({"AttributeName": k, "AttributeType": "S"})).collect();
        let mut body = json!({
            "TableName": name, "KeySchema": schema, "AttributeDefinitions": attributes,
            "BillingMode": "PAY_PER_REQUEST",
        });
        if let Some(view) = view {
            body["StreamSpecification"] = json!({"StreamEnabled": true, "StreamViewType": view});
        }
        self.directory_mut().ensure(account)?;
        self.call(account, region, "CreateTable", body)?;
        Ok(Arn::table(account, region, name).to_string())
    }

    /// Puts a resource policy on a table or stream.
    ///
    /// # Errors
    /// What PutResourcePolicy answers.
    pub fn put_resource_policy(&self, arn: &str, policy: &str) -> ApiResult<()> {
        let body = json!({"ResourceArn": arn, "Policy": policy});
        self.with_table(arn, |region, parsed| region.put_resource_policy(parsed, &body).map(drop))
    }

    /// The ARN of a table's latest stream; `None` when it never had one.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn stream_arn(&self, table_arn: &str) -> ApiResult<Option<String>> {
        self.with_table(table_arn, |region, arn| {
            let table = region.table(&arn.table);
            let table = table.ok_or_else(|| ApiError::not_found(format!("no table {arn}")))?;
            Ok(table.latest_stream.clone())
        })
    }

    /// All items of a table in DynamoDB JSON, ordered by their text.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn items(&self, table_arn: &str) -> ApiResult<Vec<Value>> {
        let items = self.with_table(table_arn, |region, arn| region.items(&arn.table))?;
        let mut items: Vec<Value> = items.iter().map(item_json).collect();
        items.sort_by_cached_key(Value::to_string);
        Ok(items)
    }

    /// The shards of a table's latest stream, by id.
    ///
    /// # Errors
    /// When it has none.
    pub fn shards(&self, table_arn: &str) -> ApiResult<Vec<ShardInfo>> {
        self.with_table(table_arn, |region, arn| region.shards(&arn.table))
    }

    /// Makes the clock by which a table's stream tells creation times wrong by so many milliseconds, from now on.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn set_stream_clock(&self, table_arn: &str, off_ms: i64) -> ApiResult<()> {
        self.with_table(table_arn, |region, arn| region.set_stream_clock(&arn.table, off_ms))
    }

    /// Splits a shard of a table's stream in two, or every open one if none is named.
    ///
    /// # Errors
    /// When there is no such open shard.
    pub fn split(&self, table_arn: &str, shard: Option<&str>) -> ApiResult<()> {
        self.with_table(table_arn, |region, arn| region.reshard(&arn.table, shard, Reshard::Split))
    }

    /// Closes a shard of a table's stream and goes on in one child, or every open one if none is named.
    ///
    /// # Errors
    /// When there is no such open shard.
    pub fn roll_over(&self, table_arn: &str, shard: Option<&str>) -> ApiResult<()> {
        self.with_table(table_arn, |region, arn| region.reshard(&arn.table, shard, Reshard::Rollover))
    }

    /// Drops all records of a shard, or of every shard if none is named, as if they had aged out.
    ///
    /// # Errors
    /// When there is no such shard.
    pub fn trim(&self, table_arn: &str, shard: Option<&str>) -> ApiResult<()> {
        self.with_table(table_arn, |region, arn| region.trim(&arn.table, shard))
    }

    /// Lets the time-to-live service delete what has expired, everywhere. Returns how many items.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn sweep_ttl(&self) -> ApiResult<usize> {
        let regions: Vec<_> =
            self.0.regions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut deleted = 0;
        for region in regions {
            deleted += region.lock().unwrap_or_else(PoisonError::into_inner).sweep_ttl()?;
        }
        Ok(deleted)
    }

    /// All tables: their ARNs, in order.
    #[must_use]
    pub fn tables(&self) -> Vec<String> {
        let regions = self.0.regions.read().unwrap_or_else(PoisonError::into_inner);
        let of = |region: &SharedRegion| {
            let region = region.lock().unwrap_or_else(PoisonError::into_inner);
            let arn = |name: &String| Arn::table(&region.account, &region.name, name).with(Part::Table);
            region.table_names().map(|name| arn(name).to_string()).collect::<Vec<_>>()
        };
        regions.values().flat_map(of).collect()
    }
}
