//! The walk-throughs of docs/access.md and docs/migration.md run as written: their `sh` blocks, one after the other, in
//! one shell.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// Runs the `sh` blocks of a page behind a heading; gives what they say, `None` without Python.
async fn walk(page: &str, heading: &str) -> Option<String> {
    let Some(python) = crate::sandbox_clients::python().await else {
        eprintln!("SKIPPED: {page} needs python3, which is not on this machine");
        return None;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join(page)).unwrap();
    let (_, part) = guide.split_once(heading).unwrap();
    let blocks: Vec<String> = crate::readme::blocks(part, "sh");
    assert!(blocks.len() > 6, "{}", blocks.len());
    let script = format!("set -euo pipefail\nset -m\ntrap 'kill %1' EXIT\n{}\n", blocks.join("\n"));
    let directory = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_shardwalker")).parent().unwrap();
    let paths = [python.parent().unwrap(), binary].map(|path| path.display().to_string());
    let path = format!("{}:{}", paths.join(":"), std::env::var("PATH").unwrap());
    let run = Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory.path())
        .env("PATH", path)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_PAGER", "")
        .env_remove("AWS_PROFILE")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = timeout(Duration::from_secs(400), run).await.expect("it ends").unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}");
    Some(said)
}

#[tokio::test]
async fn the_walk_through_runs_as_written() {
    if let Some(said) = walk("docs/access.md", "# Access\n").await {
        assert!(said.contains("allowed by statement"), "{said}");
    }
}

#[tokio::test]
async fn the_migration_runs_as_written() {
    let Some(said) = walk("docs/migration.md", "\n## The whole way, on the sandbox\n").await else { return };
    for line in [
        "writers may move from old to new",
        "writers may move from new to old",
        "there is no way back any more",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}
