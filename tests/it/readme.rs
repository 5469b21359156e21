//! What the documents say is so: the README's commands run, and every path that is named exists.
//!
//! Commands are the lines of fenced `sh` blocks. `cargo run --release --` and `target/release/shardwalker` stand
//! for the binary under test. `cargo test` is what runs this. AWS is played by a sandbox over TCP whose accounts
//! and permissions are those that the README's config needs.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::{self, Attach, Document, Terms};
use shardwalker::config::Config;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::task::Tasks;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// Far more than a slow machine needs.
const LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
const BINARY: &str = env!("CARGO_BIN_EXE_shardwalker");
const REPLICATOR: &str = "999999999999";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The texts of the fenced blocks of a language.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            if found == language {
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

/// The targets of Markdown links that are paths.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let path = |target: &str| target.split('#').next().unwrap_or_default().to_owned();
    targets.filter(|t| !t.contains("://")).map(path).filter(|path| !path.is_empty()).collect()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn the_readers_map_names_every_source_file() {
    let linked: BTreeSet<String> = links(&read("ARCHITECTURE.md")).into_iter().collect();
    let mut sources = Vec::new();
    files(&root().join("src"), &mut sources);
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let is_rust = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let missing: Vec<String> =
        sources.iter().filter(is_rust).map(name).filter(|name| !linked.contains(name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md has no link to {missing:?}");
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut documents: Vec<PathBuf> = Vec::new();
    files(&root().join("docs"), &mut documents);
    documents.extend(
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root().join(name)),
    );
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut broken = Vec::new();
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        let directory = document.parent().unwrap();
        let lost = links(&text).into_iter().filter(|link| !directory.join(link).exists());
        broken.extend(lost.map(|link| format!("{}: {link}", document.display())));
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(documents.len() > 4, "{documents:?}");
}

#[test]
fn the_policies_of_the_guide_are_those_that_are_needed() {
    let guide = read("docs/getting-started.md");
    let config = Config::parse(&blocks(&guide, "toml")[0], "getting-started.md", &|_| None).unwrap();
    let principal = Some(format!("arn:aws:iam::{REPLICATOR}:role/shardwalker"));
    let terms = Terms { principal, features: [Feature::CreateStateTable].into(), ..Terms::default() };
    let expected: Vec<Value> = policy::documents(&config, &terms)
        .unwrap()
        .into_iter()
        .map(|document| document.policy["Statement"].clone())
        .collect();
    let read = |block: &String| serde_json::from_str::<Value>(block).unwrap()["Statement"].clone();
    let documented: Vec<Value> = blocks(&guide, "json").iter().map(read).collect();
    assert_eq!(documented, expected);
}

#[tokio::test]
async fn every_command_of_the_readme_runs() {
    let readme = read("README.md");
    let commands: Vec<String> =
        blocks(&readme, "sh").iter().flat_map(|b| b.lines()).map(str::to_owned).collect();
    let config = blocks(&readme, "toml").first().cloned().expect("the README has a config");
    let aws = Aws::start(Config::parse(&config, "README.md", &|_| None).expect("the README's config")).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("shardwalker.toml"), config).unwrap();
    let mut ran = Vec::new();
    for command in &commands {
        let args = command
            .strip_prefix("cargo run --release -- ")
            .or_else(|| command.strip_prefix("target/release/shardwalker "));
        let Some(args) = args else {
            assert_eq!(command, "cargo test", "this test does not know how to run it");
            continue;
        };
        let args: Vec<&str> = args.split(' ').collect();
        ran.push(args[0]);
        match args[0] {
            "demo" | "check" => {
                let output = tokio::time::timeout(LIMIT, aws.command(directory.path(), &args).output());
                let output = output.await.expect("it ends").unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
            }
            "run" => aws.runs(directory.path(), &args).await,
            "sandbox" => serves(aws.command(directory.path(), &args)).await,
            _ => panic!("this test does not know how to run {command:?}"),
        }
    }
    for command in ["demo", "check", "run"] {
        assert!(ran.contains(&command), "the README says nothing of {command}");
    }
    aws.stop.cancel();
}

/// A sandbox that plays AWS for the README's config.
struct Aws {
    sandbox: Sandbox,
    config: Config,
    keys: Credentials,
    endpoint: String,
    stop: CancellationToken,
    _server: Tasks<std::io::Result<()>>,
}

impl Aws {
    async fn start(config: Config) -> Self {
        let sandbox = Sandbox::new(Options::default()).unwrap();
        let keys = permissions(&sandbox, &config);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (stop, mut server) = (CancellationToken::new(), Tasks::new());
        let (serving, until) = (sandbox.clone(), stop.clone());
        server.spawn(async move { serving.serve(listener, until).await });
        Self { sandbox, config, keys, endpoint, stop, _server: server }
    }

    /// The binary, in the directory of the config, with this sandbox for AWS.
    fn command(&self, directory: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(args)
            .current_dir(directory)
            .env("SHARDWALKER_ENDPOINT", &self.endpoint)
            .env("SHARDWALKER_ADMIN_LISTEN", "127.0.0.1:0")
            .env("AWS_ACCESS_KEY_ID", &self.keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &self.keys.secret_access_key)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs the service until what is written to each route's source is at its peers, and stops it.
    async fn runs(&self, directory: &Path, args: &[&str]) {
        let mut child =
            self.command(directory, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for route in &self.config.routes {
            let source = &self.config.members[route.from].arn;
            let keys = self.sandbox.admin(&source.account, "application").unwrap();
            let client = aws_sdk_dynamodb::Client::new(&self.sandbox.sdk_config(&keys, &source.region));
            let put =
                client.put_item().table_name(&source.table).item("id", AttributeValue::S("order-1".into()));
            put.send().await.unwrap();
        }
        let arrived = || {
            let peers = self.config.routes.iter().flat_map(|route| &route.to);
            let mut items = peers.map(|&peer| self.sandbox.items(&self.config.members[peer].arn.to_string()));
            items.all(|items| items.unwrap().len() == 1)
        };
        let wait = async {
            while !arrived() {
                assert_eq!(child.try_wait().unwrap(), None, "the service ended");
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the item arrives");
        terminate(child).await;
    }
}

/// Starts a command that serves until it is stopped, waits for its first line, and stops it.
async fn serves(mut command: Command) {
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.expect("it starts").unwrap();
    assert!(line.is_some(), "it says nothing");
    terminate(child).await;
}

async fn terminate(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("it stops").unwrap();
    assert!(status.success(), "{status}");
}

/// Makes the tables of a config, and lets the replicator do what it needs and no more; its keys.
fn permissions(sandbox: &Sandbox, config: &Config) -> Credentials {
    for (index, member) in config.members.iter().enumerate() {
        let is_source = config.routes.iter().any(|route| route.from == index);
        let view = is_source.then_some("NEW_AND_OLD_IMAGES");
        let name = &member.arn.table;
        sandbox.create_table(&member.arn.account, &member.arn.region, name, &["id"], view).unwrap();
    }
    let caller = format!("arn:aws:iam::{REPLICATOR}:user/shardwalker");
    let features = [Feature::CreateStateTable].into();
    let terms = Terms { principal: Some(caller.clone()), features, ..Terms::default() };
    let documents = policy::documents(config, &terms).unwrap();
    let of_role = |role: &str| {
        let own = |document: &&Document| document.attach == Attach::Role(role.to_owned());
        documents.iter().find(own).unwrap().policy.to_string()
    };
    for Document { account, attach, policy, .. } in &documents {
        let policy = policy.to_string();
        match attach {
            Attach::Table(table) => sandbox.put_resource_policy(&table.to_string(), &policy).unwrap(),
            Attach::Stream(table) => {
                let stream = sandbox.stream_arn(&table.to_string()).unwrap().unwrap();
                sandbox.put_resource_policy(&stream, &policy).unwrap();
            }
            Attach::Trust(role) => {
                let name = role.rsplit('/').next().unwrap();
                sandbox.role(account, name, &policy, &of_role(role)).unwrap();
            }
            Attach::Role(_) | Attach::Key(_) => {}
        }
    }
    sandbox.user(REPLICATOR, "shardwalker", &of_role(&caller)).unwrap()
}
