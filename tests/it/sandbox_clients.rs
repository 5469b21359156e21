//! Clients that we did not write, over TCP, against the real binary.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A served sandbox; it ends with the test.
struct Served {
    process: Child,
    /// The line that it printed.
    ready: String,
}

impl Served {
    async fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--json"])
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap().unwrap();
        Self { process, ready }
    }

    fn address(&self) -> String {
        let ready: serde_json::Value = serde_json::from_str(&self.ready).unwrap();
        ready["endpoint"].as_str().unwrap().trim_start_matches("http://").to_owned()
    }

    /// Asks an admin path; the status and the body.
    async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let request = format!(
            "{method} /_sandbox/{path} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// The Python of a virtual environment with the pinned clients; `None` on a machine without Python.
pub(crate) async fn python() -> Option<PathBuf> {
    let found = Command::new("python3").arg("--version").output().await;
    if !found.is_ok_and(|output| output.status.success()) {
        return None;
    }
    Some(environment(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv-clients")).await)
}

/// Makes the virtual environment, once for all tests that ask at the same time, in this process or in others.
async fn environment(venv: PathBuf) -> PathBuf {
    // The folder is not there yet where cargo builds elsewhere (CARGO_TARGET_DIR).
    std::fs::create_dir_all(venv.parent().unwrap()).unwrap();
    let lock = std::fs::File::create(venv.with_extension("lock")).unwrap();
    let _locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/venv.sh");
    let made = Command::new("sh").arg(script).arg(&venv).output();
    let made = timeout(Duration::from_secs(600), made).await.unwrap().unwrap();
    assert!(made.status.success(), "no virtual environment: {}", String::from_utf8_lossy(&made.stderr));
    venv.join("bin/python")
}

#[tokio::test]
async fn tests_that_begin_at_once_share_one_environment() {
    if python().await.is_none() {
        eprintln!(
            "SKIPPED: tests_that_begin_at_once_share_one_environment needs python3, which is not on this machine"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let venv = directory.path().join("venv");
    let another = async {
        let begun = async {
            while !venv.join("pyvenv.cfg").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), begun).await.expect("the first one begins");
        environment(venv.clone()).await
    };
    tokio::join!(environment(venv.clone()), another);
}

#[tokio::test]
async fn boto3_and_the_aws_cli_work_unmodified() {
    let Some(python) = python().await else {
        eprintln!(
            "SKIPPED: boto3_and_the_aws_cli_work_unmodified needs python3, which is not on this machine"
        );
        return;
    };
    let sandbox = Served::start(&[]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/across_accounts.py");
    let run = Command::new(python).arg(script).arg(&sandbox.ready).output();
    let done = timeout(Duration::from_secs(300), run).await.unwrap().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}");
    assert!(said.contains("agree with the sandbox"), "{said}");
}

#[tokio::test]
async fn the_admin_paths_turn_the_sandbox() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = "[[account]]\nid = \"111111111111\"\n[[account.table]]\nname = \"orders\"\nkeys = [\"id\"]\n\
                stream = \"NEW_AND_OLD_IMAGES\"\n";
    std::fs::write(config.path(), text).unwrap();
    let sandbox = Served::start(&["--config", config.path().to_str().unwrap()]).await;
    let table = r#"{"table": "arn:aws:dynamodb:us-east-1:111111111111:table/orders"}"#;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();

    let (status, before) = sandbox.admin("GET", "health", "").await;
    assert_eq!(status, 200);
    let (_, after) = sandbox.admin("POST", "advance", r#"{"seconds": 3600}"#).await;
    let now = |text: &str| json(text)["now_ms"].as_u64().unwrap();
    assert!(now(&after) >= now(&before) + 3_600_000);
    let (_, split) = sandbox.admin("POST", "split", table).await;
    assert_eq!(json(&split).as_array().unwrap().len(), 12, "four parents and eight children");
    let rule = r#"{"operation": "PutItem", "effect": "throttle", "times": 2}"#;
    assert_eq!(sandbox.admin("POST", "faults", rule).await.0, 200);
    assert!(sandbox.admin("GET", "faults", "").await.1.contains("throttle"));
    assert_eq!(sandbox.admin("PUT", "weather", r#"{"empty_pages": 0.5}"#).await.0, 200);
    assert_eq!(sandbox.admin("PUT", "weather", r#"{"rain": 1}"#).await.0, 400);
    let (_, user) = sandbox
        .admin("POST", "users", r#"{"account": "111111111111", "name": "bob", "policy": {"Statement": []}}"#)
        .await;
    assert!(json(&user)["access_key_id"].is_string());
    assert_eq!(json(&sandbox.admin("POST", "items", table).await.1), json("[]"));
    assert_eq!(sandbox.admin("GET", "nowhere", "").await.0, 404);
}

#[tokio::test]
async fn a_signal_ends_it_well() {
    let mut sandbox = Served::start(&[]).await;
    let pid = sandbox.process.id().unwrap().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
    let status = timeout(Duration::from_secs(10), sandbox.process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_bad_config_is_reported_with_its_line() {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "sed = 3\n").unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
        .args(["sandbox", "--listen", "127.0.0.1:0", "--config", config.path().to_str().unwrap()])
        .output();
    let done = timeout(Duration::from_secs(30), run).await.unwrap().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("line 1") && said.contains("sed"), "{said}");
}
