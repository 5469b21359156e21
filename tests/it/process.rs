//! The real process: signals, the grace period, health. On the sandbox over TCP, in real time.

use crate::sandbox_support::Client;
use crate::world::{HOME, PEERS, World};
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

    /// Starts another command on the config of the last start.
    pub(crate) fn child(&self, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_shardwalker"))
            .args(args)
            .env("SHARDWALKER_CONFIG", self.file())
            .env("AWS_ACCESS_KEY_ID", &self.world.keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &self.world.keys.secret_access_key)
            .env_remove("AWS_PROFILE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Where files of a test may lie, the config among them.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("shardwalker.toml")
    }

    /// Starts the service, and waits until it says that it is ready.
    pub(crate) async fn run(&self, grace: &str) -> Process {
        self.run_as(grace, |text| text, Stdio::inherit()).await
    }

    /// As [`run`](Self::run), with a config that was changed, and another standard output.
    pub(crate) async fn run_as(&self, grace: &str, edit: impl Fn(String) -> String, out: Stdio) -> Process {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = free.local_addr().unwrap().port();
        drop(free);
        let rest = format!("endpoint = \"{}\"\ngrace = \"{grace}\"\naccess_patience = \"3s\"", self.endpoint);
        let text = self
            .world
            .config_text("", &rest)
            .replace("listen = \"off\"", &format!("listen = \"127.0.0.1:{admin}\"\nstall_after = \"10s\""));
        let file = self.file();
        std::fs::write(&file, edit(text)).unwrap();
        let keys = &self.world.keys;
        let child = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
            .args(["run", "--create-state-table", "-c"])
            .arg(&file)
            .env("AWS_ACCESS_KEY_ID", &keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret_access_key)
            .env_remove("AWS_PROFILE")
            .stdout(out)
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
        let (code, _, said) = self.end_of_both().await;
        (code, said)
    }

    /// The exit code and what it said on stdout, where that is a pipe, and on stderr.
    pub(crate) async fn end_of_both(self) -> (Option<i32>, String, String) {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
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
async fn a_peer_that_is_down_fails_health_and_holds_up_no_stop() {
    let served = Served::new().await;
    let process = served.run("25s").await;
    served.world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(PEERS[0].0));
    served.world.put("stuck", "x").await;
    until("health fails", async || process.get("/healthz").await.0 == 503).await;
    let (_, why) = process.get("/healthz").await;
    assert!(why.contains("applied at b"), "{why}");
    assert!(process.get("/metrics").await.1.contains("shardwalker_healthy 0"));
    let begun = Instant::now();
    process.signal("TERM");
    let (code, said) = process.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let held = |row: &&serde_json::Value| row["sk"]["S"].as_str().is_some_and(|sk| sk.starts_with("shardId"));
    let rows = served.world.rows("lease#copy");
    assert!(rows.iter().filter(held).all(|row| row.get("owner").is_none()), "given back: {rows:#?}");
    // Nothing is lost by that.
    served.world.sandbox.faults().clear();
    let process = served.run("25s").await;
    until("members are equal", async || served.world.all_equal()).await;
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn the_grace_period_ends_a_drain_that_cannot_be_finished() {
    let served = Served::new().await;
    let process = served.run("1s").await;
    until("both shards are walked", async || {
        process.get("/metrics").await.1.contains("leases_held{route=\"copy\"} 2")
    })
    .await;
    served.world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(HOME));
    served.world.put("unsaved", "x").await;
    until("it is applied", async || served.world.all_equal()).await;
    process.signal("TERM");
    let (code, said) = process.end().await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("not all work was done within 1s"), "{said}");
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

#[tokio::test]
async fn a_profile_of_the_config_goes_before_the_keys_of_the_environment() {
    let served = Served::new().await;
    let process = served.run("5s").await;
    let at = |name: &str| served.directory.path().join(name);
    let keys = &served.world.keys;
    let profile = format!(
        "[home]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key_id, keys.secret_access_key
    );
    std::fs::write(at("credentials"), profile).unwrap();
    let text = std::fs::read_to_string(at("shardwalker.toml")).unwrap();
    std::fs::write(at("profile.toml"), text.replace("[state]", "[state]\nprofile = \"home\"")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
        .args(["status", "-c"])
        .arg(at("profile.toml"))
        .env("AWS_ACCESS_KEY_ID", "of somebody else")
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .env("AWS_SHARED_CREDENTIALS_FILE", at("credentials"))
        .env("AWS_CONFIG_FILE", at("none"))
        .env_remove("AWS_PROFILE")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("ROUTE  PEER"), "{said}");
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}
