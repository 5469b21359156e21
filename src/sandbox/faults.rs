//! What goes wrong, and when: rules that a seed decides.
//!
//! Owns the rules, their counts and the weather of streams and policies. What an effect does is done where the
//! thing is: dropping at the doors, answers in the gateway, trimming in the Region.

use super::random::Chance;
use super::time::millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happens to a request that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// It never arrives: nothing happened, the connection breaks.
    DropRequest,
    /// It takes effect, the answer never arrives.
    DropAnswer,
    /// It waits so many milliseconds before it takes effect.
    DelayMs(u64),
    /// It takes effect, and the answer waits so many milliseconds.
    DelayAnswerMs(u64),
    /// `ProvisionedThroughputExceededException`, with a throttling reason; nothing happened.
    ProvisionedThroughputExceeded,
    /// `ThrottlingException`, with a throttling reason; nothing happened.
    Throttle,
    /// `RequestLimitExceeded`, with a throttling reason; nothing happened.
    RequestLimitExceeded,
    /// HTTP 500 before it takes effect.
    InternalError,
    /// HTTP 500 after it took effect.
    InternalErrorAfter,
    /// HTTP 503 before it takes effect.
    Unavailable,
    /// `AccessDeniedException`.
    Deny,
    /// `TransactionConflictException`; nothing happened.
    TransactionConflict,
    /// The session of the caller ends: this request and all later ones with its keys are refused.
    ExpireCredentials,
    /// `ExpiredIteratorException` (GetRecords).
    ExpireIterator,
    /// The shard of the iterator loses all its records (GetRecords).
    TrimShard,
}

/// A fault: which requests, how often, and what happens to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The operation, such as `PutItem`; any if absent.
    #[serde(default)]
    pub operation: Option<String>,
    /// The account that owns the table, stream or role; any if absent.
    #[serde(default)]
    pub account: Option<String>,
    /// The table's name; any if absent.
    #[serde(default)]
    pub table: Option<String>,
    /// The caller's ARN or account; any if absent.
    #[serde(default)]
    pub caller: Option<String>,
    /// The partition key's value in DynamoDB JSON, such as `{"S": "a"}`; any if absent.
    #[serde(default)]
    pub key: Option<Value>,
    /// How often a matching request is hit, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// So many matching requests pass first.
    #[serde(default)]
    pub after: u64,
    /// So many requests are hit at most; without end if absent.
    #[serde(default)]
    pub times: Option<u64>,
    /// What happens.
    pub effect: Effect,
}

fn always() -> f64 {
    1.0
}

impl Rule {
    /// A rule that hits every request.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self {
            operation: None,
            account: None,
            table: None,
            caller: None,
            key: None,
            probability: 1.0,
            after: 0,
            times: None,
            effect,
        }
    }

    /// Only this operation.
    #[must_use]
    pub fn operation(self, name: &str) -> Self {
        Self { operation: Some(name.into()), ..self }
    }

    /// Only what this account owns.
    #[must_use]
    pub fn account(self, id: &str) -> Self {
        Self { account: Some(id.into()), ..self }
    }

    /// Only this table.
    #[must_use]
    pub fn table(self, name: &str) -> Self {
        Self { table: Some(name.into()), ..self }
    }

    /// Only this caller: an ARN, or a whole account.
    #[must_use]
    pub fn caller(self, arn_or_account: &str) -> Self {
        Self { caller: Some(arn_or_account.into()), ..self }
    }

    /// Only items with this partition key, in DynamoDB JSON.
    #[must_use]
    pub fn key(self, value: Value) -> Self {
        Self { key: Some(value), ..self }
    }

    /// Hits with this probability.
    #[must_use]
    pub fn probability(self, probability: f64) -> Self {
        Self { probability, ..self }
    }

    /// Lets so many pass first.
    #[must_use]
    pub fn after(self, count: u64) -> Self {
        Self { after: count, ..self }
    }

    /// Hits so many at most.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { times: Some(count), ..self }
    }
}

/// What a rule is matched against.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The operation.
    pub operation: &'a str,
    /// The account that owns what is asked for.
    pub account: &'a str,
    /// The table's name, if there is one.
    pub table: Option<&'a str>,
    /// The caller's ARN.
    pub caller: &'a str,
    /// The caller's account.
    pub caller_account: &'a str,
}

/// How streams and policies behave while nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weather {
    /// How often GetRecords answers an empty page though there are records, 0 to 1.
    pub empty_pages: f64,
    /// How often DescribeStream ends a page early, with a LastEvaluatedShardId, 0 to 1.
    pub short_listings: f64,
    /// How long a new child is missing from listings, in milliseconds.
    pub children_listed_after_ms: u64,
    /// How long a closed shard is listed as open, in milliseconds.
    pub closed_listed_after_ms: u64,
    /// How long a policy takes to be applied, in milliseconds.
    pub policy_delay_ms: u64,
}

impl Default for Weather {
    /// Fair: everything at once.
    fn default() -> Self {
        Self {
            empty_pages: 0.0,
            short_listings: 0.0,
            children_listed_after_ms: 0,
            closed_listed_after_ms: 0,
            policy_delay_ms: 0,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(Rule, u64, u64)>,
    weather: Weather,
}

/// The faults of one sandbox; clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    chance: Chance,
}

impl Faults {
    /// No faults, fair weather.
    #[must_use]
    pub fn none(chance: Chance) -> Self {
        Self { state: Arc::default(), chance }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule. The first rule that hits decides.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push((rule, 0, 0));
    }

    /// Removes all rules; the weather stays.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// The rules, each with how many requests it has hit.
    #[must_use]
    pub fn rules(&self) -> Vec<(Rule, u64)> {
        self.state().rules.iter().map(|(rule, _, hits)| (rule.clone(), *hits)).collect()
    }

    /// The weather now.
    #[must_use]
    pub fn weather(&self) -> Weather {
        self.state().weather
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Policies put from now on are applied so much later.
    pub fn delay_policies(&self, by: Duration) {
        self.state().weather.policy_delay_ms = millis(by);
    }

    /// Whether a rule is about a key.
    pub(super) fn mind_keys(&self) -> bool {
        self.state().rules.iter().any(|(rule, ..)| rule.key.is_some())
    }

    /// The effect on a request, if any; `key_matches` is asked only by rules about a key.
    pub(super) fn strike(&self, target: &Target<'_>, key_matches: impl Fn(&Value) -> bool) -> Option<Effect> {
        let mut state = self.state();
        for (rule, seen, hits) in &mut state.rules {
            let is = |wanted: &Option<String>, actual: Option<&str>| {
                wanted.as_deref().is_none_or(|wanted| actual == Some(wanted))
            };
            let applies = rule.times.is_none_or(|times| *hits < times)
                && is(&rule.operation, Some(target.operation))
                && is(&rule.account, Some(target.account))
                && is(&rule.table, target.table)
                && (is(&rule.caller, Some(target.caller)) || is(&rule.caller, Some(target.caller_account)))
                && rule.key.as_ref().is_none_or(&key_matches);
            if !applies {
                continue;
            }
            *seen += 1;
            if *seen > rule.after && self.chance.happens(rule.probability) {
                *hits += 1;
                return Some(rule.effect);
            }
        }
        None
    }
}
