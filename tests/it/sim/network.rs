//! The network between the workers and the sandbox: every request of every worker passes here.
//!
//! It decides how long a request and its answer are on their way, and lets a request land whatever has become of its
//! sender: a worker that crashed, stands still, or gave up waiting. It shows each request to the judge at the
//! moment when it lands, and writes the run's log.

use super::judge::{Judge, Request};
use super::plan::{Delays, REQUEST};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use shardwalker::version::{Mark, Stamp};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// A rule that is switched off, from outside of the code that keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Writes to the peers take effect whatever stands there.
    Conditions,
    /// Changes of a lease take effect whoever holds it.
    Fencing,
    /// The listings do not say which shard continues which.
    Parents,
    /// The ledger is read as empty: in a group, nobody sees that an item was created after its delete.
    Ledger,
    /// Nothing is brought back that a member's own application had written and we had replaced.
    Repair,
    /// The first step of a delete does not mark the item, so that its removal looks like an application's.
    Marks,
    /// What an application left with a stamp that it must not keep is not stamped anew.
    NewStamps,
}

type Answer = Result<HttpResponse, ConnectorError>;

/// A request on its way.
struct Sent {
    worker: usize,
    request: HttpRequest,
    door: SharedHttpConnector,
    answer: oneshot::Sender<Answer>,
}

/// More than all workers ever have under way.
const QUEUE: usize = 10_000;

/// One worker's way into the network.
#[derive(Clone)]
pub(super) struct Line {
    worker: usize,
    door: SharedHttpClient,
    sender: mpsc::Sender<Sent>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("worker", &self.worker).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct LineConnector(Line, SharedHttpConnector);

impl HttpClient for Line {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        parts: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(LineConnector(self.clone(), self.door.http_connector(settings, parts)))
    }
}

impl HttpConnector for LineConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self(line, door) = self;
        let (answer, waiting) = oneshot::channel();
        let sent = Sent { worker: line.worker, request, door: door.clone(), answer };
        assert!(line.sender.try_send(sent).is_ok(), "the network has room, and outlives the workers");
        HttpConnectorFuture::new(async move {
            waiting.await.unwrap_or_else(|_| Err(ConnectorError::io("the network is gone".into())))
        })
    }
}

/// Carries requests until all lines are gone.
pub(super) struct Network {
    receiver: mpsc::Receiver<Sent>,
    door: SharedHttpClient,
    sender: mpsc::Sender<Sent>,
    random: StdRng,
    delays: Arc<Mutex<Delays>>,
    judge: Arc<Mutex<dyn Judge>>,
    sabotage: Option<Sabotage>,
}

impl Network {
    pub(super) fn new(
        seed: u64,
        door: SharedHttpClient,
        delays: Delays,
        judge: Arc<Mutex<dyn Judge>>,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let random = StdRng::seed_from_u64(seed ^ 0x6e65_7477_6f72_6b00);
        Self { receiver, door, sender, random, delays: Arc::new(Mutex::new(delays)), judge, sabotage }
    }

    /// A worker's HTTP client.
    pub(super) fn line(&self, worker: usize) -> Line {
        Line { worker, door: self.door.clone(), sender: self.sender.clone() }
    }

    /// Turns how slow it is.
    pub(super) fn delays(&self) -> Arc<Mutex<Delays>> {
        Arc::clone(&self.delays)
    }

    pub(super) async fn run(mut self) {
        let mut flights = FuturesUnordered::new();
        loop {
            tokio::select! {
                // What is sent first, so that delays are drawn in the order of sending.
                biased;
                Some(sent) = self.receiver.recv() => flights.push(self.carry(sent)),
                Some(()) = flights.next(), if !flights.is_empty() => {}
            }
        }
    }

    fn carry(&mut self, sent: Sent) -> impl Future<Output = ()> + Send + use<> {
        let Sent { worker, mut request, door, answer } = sent;
        let seen = Request::of(&request);
        let (there, back) = self.delay(&seen);
        if let Some(sabotage) = self.sabotage {
            sabotage.spoil_request(&seen, &mut request);
        }
        let (judge, sabotage) = (Arc::clone(&self.judge), self.sabotage);
        async move {
            sleep(there).await;
            let mut result = {
                // The sandbox answers without waiting, so that nothing comes between the judge's two looks.
                let mut judge = judge.lock().unwrap_or_else(PoisonError::into_inner);
                let before = judge.before(&seen);
                let result = match sabotage.is_some_and(|sabotage| sabotage.swallows(&seen)) {
                    true => Ok(HttpResponse::new(200.try_into().unwrap(), SdkBody::from("{}"))),
                    false => door.call(request).now_or_never().expect("the sandbox does not wait"),
                };
                judge.court_mut().arrived(worker, &seen, &result);
                judge.landed(&seen, before);
                result
            };
            if let (Some(sabotage), Ok(response)) = (sabotage, &mut result) {
                sabotage.spoil_answer(&seen, response);
            }
            sleep(back).await;
            // Whoever asked may be gone.
            let _ = answer.send(result);
        }
    }

    fn delay(&mut self, seen: &Request) -> (Duration, Duration) {
        let delays = *self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        let random = &mut self.random;
        let mut usual = || Duration::from_millis(random.random_range(0..=delays.usual_ms));
        let (mut there, mut back) = (usual(), usual());
        let most = REQUEST - Duration::from_millis(100);
        if random.random_bool(delays.slow) {
            there = Duration::from_millis(random.random_range(100..3_900));
        }
        if random.random_bool(delays.slow) {
            back = Duration::from_millis(random.random_range(100..6_000));
        }
        if random.random_bool(delays.held) {
            there = Duration::from_millis(random.random_range(4_000..20_000));
        }
        // A creation that lands after its sender has stopped waiting is the one thing that a one-way route does not
        // withstand (ARCHITECTURE.md, what remains). A group does, and has no such requests.
        if seen.is_creation() {
            there = there.min(most);
        }
        (there, back)
    }
}

impl Sabotage {
    /// Whether a request never arrives, though its sender is told that it took effect.
    fn swallows(self, seen: &Request) -> bool {
        if !seen.is_member_write() {
            return false;
        }
        let stamp = |value: &Value| value["S"].as_str().and_then(Stamp::parse);
        match self {
            // What a member's application has written comes to it from elsewhere only by a repair.
            Self::Repair => {
                let number = seen.table().split(':').nth(4).and_then(|account| account.parse::<u64>().ok());
                let stamp = stamp(&seen.body["Item"]["shardwalker"]);
                stamp.is_some_and(|stamp| number == Some(111_111_111_110 + u64::from(stamp.version.member)))
            }
            // The one put that waits for a certain stamp.
            Self::NewStamps => {
                let seen = stamp(&seen.body["ExpressionAttributeValues"][":seen"])
                    .filter(|_| seen.operation == "PutItem");
                seen.is_some()
            }
            _ => false,
        }
    }

    /// A delete's two steps, with the stamps of a put.
    fn unmark(seen: &Request, request: &mut HttpRequest) {
        let mut body = seen.body.clone();
        for value in [":stamp", ":seen"] {
            let text = &mut body["ExpressionAttributeValues"][value]["S"];
            if let Some(stamp) = text.as_str().and_then(Stamp::parse) {
                *text = json!(Stamp { mark: Mark::Put, ..stamp }.to_string());
            }
        }
        *request.body_mut() = SdkBody::from(body.to_string());
    }

    fn spoil_request(self, seen: &Request, request: &mut HttpRequest) {
        let about_stamps =
            seen.body["ConditionExpression"].as_str().is_some_and(|text| text.contains("#stamp"));
        let spoilt = match self {
            Self::Conditions => seen.is_member_write() && about_stamps,
            Self::Fencing => seen.is_lease_change(),
            Self::Marks if seen.is_member_write() && seen.operation != "PutItem" => {
                return Self::unmark(seen, request);
            }
            _ => false,
        };
        let Some(condition) = seen.body["ConditionExpression"].as_str().filter(|_| spoilt) else { return };
        // Still there, so that its names and values are used.
        let mut body = seen.body.clone();
        body["ConditionExpression"] = json!(format!("({condition}) OR attribute_not_exists(nothing)"));
        *request.body_mut() = SdkBody::from(body.to_string());
    }

    fn spoil_answer(self, seen: &Request, response: &mut HttpResponse) {
        let spoilt = match self {
            Self::Parents => seen.operation == "DescribeStream",
            Self::Ledger => seen.operation == "BatchGetItem",
            _ => false,
        };
        let body: Option<Value> =
            response.body().bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
        let Some(mut body) = body.filter(|_| spoilt && response.status().is_success()) else { return };
        for shard in body["StreamDescription"]["Shards"].as_array_mut().into_iter().flatten() {
            shard.as_object_mut().map(|shard| shard.remove("ParentShardId"));
        }
        for rows in body["Responses"].as_object_mut().into_iter().flatten() {
            *rows.1 = json!([]);
        }
        *response.body_mut() = SdkBody::from(body.to_string());
    }
}
