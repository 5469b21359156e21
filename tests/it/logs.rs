//! What the log never holds, whatever is asked of it.

use crate::process::until;
use crate::world::World;
use shardwalker::task::Tasks;
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

const VALUE: &str = "nobody-may-read-this-4711";

/// Over TCP and as the real process, so that every layer of the SDK and of HTTP is there, and speaks.
#[tokio::test]
async fn no_directive_brings_the_values_of_items_into_the_log() {
    let world = World::now();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sandbox, mut serving) = (world.sandbox.clone(), Tasks::new());
    serving.spawn(async move { sandbox.serve(listener, CancellationToken::new()).await });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardwalker.toml");
    std::fs::write(&file, world.config_text("", &format!("endpoint = \"{endpoint}\""))).unwrap();
    let everything = "trace,shardwalker=trace,aws_smithy_runtime=trace,aws_sdk_dynamodb=trace,\
                      aws_sdk_dynamodbstreams=trace,aws_smithy_http_client=trace,hyper=trace,h2=trace";
    let mut process = Command::new(env!("CARGO_BIN_EXE_shardwalker"))
        .args(["--log", everything, "run", "--create-state-table", "-c"])
        .arg(&file)
        .env("AWS_ACCESS_KEY_ID", &world.keys.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &world.keys.secret_access_key)
        .env_remove("AWS_PROFILE")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let mut reading = Tasks::new();
    reading.spawn(async move {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).await.map(|_| String::from_utf8_lossy(&said).into_owned())
    });
    // It may begin with what is written after its start.
    until("the item is copied", async || {
        world.put("k", VALUE).await;
        world.sandbox.items(&world.peers[0]).unwrap().iter().any(|item| item["id"]["S"] == "k")
    })
    .await;
    let pid = process.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let limit = std::time::Duration::from_secs(30);
    let said = tokio::time::timeout(limit, reading.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    assert!(said.contains("DEBUG") || said.contains("TRACE"), "our own is there in full: {said}");
    let line = said.lines().find(|line| line.contains(VALUE));
    assert!(line.is_none(), "{line:?}");
    // As hyper and the SDK write bytes.
    let secret = &world.keys.secret_access_key;
    assert!(!said.contains(secret.as_str()), "nor a secret key");
}
