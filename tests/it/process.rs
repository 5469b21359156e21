//! The real process: signals, the grace period, health. On the sandbox over TCP, in real time.

use crate::sandbox_support::Client;
use crate::world::{PEERS, World};
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::task::Tasks;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Process {
    child: Child,
    admin: u16,
}

pub(crate) struct Served {
    pub(crate) world: World,
    endpoint: String,
    directory: TempDir,
    _serving: Tasks<std::io::Result<()>>,
}

impl Served {
    pub(crate) async fn new() -> Self {
        let world = World::now();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = Tasks::new();
        let sandbox = world.sandbox.clone();
        serving.spawn(async move { sandbox.serve(listener, CancellationToken::new()).await });
        Self { world, endpoint, directory: TempDir::new().unwrap(), _serving: serving }
    }

    /// Runs another command on the config of the last start: its exit code, stdout and stderr.
    pub(crate) async fn command(&self, args: &[&str]) -> (i32, String, String) {
        let keys = &self.world.keys;
        let output = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
            .args(args)
            .env("SHARDWALKER_CONFIG", self.directory.path().join("shardwalker.toml"))
            .env("AWS_ACCESS_KEY_ID", &keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret_access_key)
            .env("USER", "op")
            .env_remove("AWS_PROFILE")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Starts the service, and waits until it says that it is ready.
    pub(crate) async fn run(&self, grace: &str) -> Process {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = free.local_addr().unwrap().port();
        drop(free);
        let rest = format!("endpoint = \"{}\"\ngrace = \"{grace}\"", self.endpoint);
        let text = self
            .world
            .config_text("", &rest)
            .replace("listen = \"off\"", &format!("listen = \"127.0.0.1:{admin}\"\nstall_after = \"10s\""));
        let file: PathBuf = self.directory.path().join("shardwalker.toml");
        std::fs::write(&file, text).unwrap();
        let keys = &self.world.keys;
        let child = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
            .args(["run", "--create-state-table", "-c"])
            .arg(&file)
            .env("AWS_ACCESS_KEY_ID", &keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret_access_key)
            .env_remove("AWS_PROFILE")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut process = Process { child, admin };
        let limit = Instant::now() + LIMIT;
        while process.get("/readyz").await.0 != 200 {
            let ended = process.child.try_wait().unwrap().is_some();
            if ended || Instant::now() > limit {
                let _ = process.child.start_kill();
                panic!("it is not ready: {:?}", process.end().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        process
    }
}

impl Process {
    /// The status and body of an admin page; status 0 while nobody listens.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)).await else {
            return (0, String::new());
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// The exit code and what it said on stderr.
    pub(crate) async fn end(self) -> (Option<i32>, String) {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

pub(crate) async fn until(what: &str, state: impl AsyncFn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !state().await {
        assert!(Instant::now() < limit, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_term_signal_drains_and_exits_with_0() {
    let served = Served::new().await;
    let process = served.run("25s").await;
    served.world.load(20, 60, 1).await;
    until("members are equal", async || served.world.all_equal()).await;
    assert_eq!(process.get("/healthz").await, (200, "ok\n".to_owned()));
    let metrics = process.get("/metrics").await.1;
    assert!(metrics.contains("shardwalker_leases_held{route=\"copy\"} 2"), "{metrics}");
    served.world.load(20, 60, 2).await;
    process.signal("TERM");
    let (code, said) = process.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("draining") && said.contains("stopped"), "{said}");
    let rows = served.world.rows("lease#copy");
    // One a shard, and the lister's.
    assert!(rows.len() == 3 && rows.iter().all(|row| row.get("owner").is_none()), "{rows:?}");
    assert!(served.world.rows("fleet").is_empty());
    // What came too late for the drain is for the next start.
    let process = served.run("25s").await;
    until("members are equal", async || served.world.all_equal()).await;
    process.signal("INT");
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn a_peer_that_is_down_fails_health_and_the_grace_period_ends_the_drain() {
    let served = Served::new().await;
    let process = served.run("1s").await;
    served.world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(PEERS[0].0));
    served.world.put("stuck", "x").await;
    until("health fails", async || process.get("/healthz").await.0 == 503).await;
    let (_, why) = process.get("/healthz").await;
    assert!(why.contains("applied at b"), "{why}");
    assert!(process.get("/metrics").await.1.contains("shardwalker_healthy 0"));
    process.signal("TERM");
    let (code, said) = process.end().await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("not all work was done within 1s"), "{said}");
    // Nothing is lost by that.
    served.world.sandbox.faults().clear();
    let process = served.run("25s").await;
    until("members are equal", async || served.world.all_equal()).await;
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let served = Served::new().await;
    let process = served.run("25s").await;
    served.world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(PEERS[0].0));
    served.world.put("stuck", "x").await;
    until("it is under way", async || {
        process.get("/metrics").await.1.contains("in_flight{peer=\"b\",route=\"copy\"} 1")
    })
    .await;
    process.signal("TERM");
    until("it drains", async || process.get("/readyz").await.1 == "draining\n").await;
    let begun = Instant::now();
    process.signal("TERM");
    let (code, said) = process.end().await;
    assert_eq!(code, Some(shardwalker::shutdown::AT_ONCE), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let admin = Client::admin(&served.world.sandbox, PEERS[0].0);
    served.world.sandbox.faults().clear();
    assert_eq!(admin.db.scan().table_name("orders-copy").send().await.unwrap().count(), 0);
}
