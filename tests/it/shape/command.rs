//! `shape try` as the real binary, without any AWS.

use super::{Shaped, event};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;

async fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_shardwalker"))
        .args(args)
        .current_dir(folder)
        .env("SHARDWALKER_CONFIG", "shardwalker.toml")
        .env("AWS_ACCESS_KEY_ID", "none")
        .env("AWS_SECRET_ACCESS_KEY", "none")
        .env("PII_KEY", "a key of sixteen bytes")
        .env_remove("AWS_PROFILE")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), output).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const LINES: &str = "[route.shape]\nfilter = 'item.state == \"WA\"'\nmask = { more = \"hash\" }\n\
                     mask_key_env = \"PII_KEY\"\nrename = { id = \"key\" }\n";

#[tokio::test]
async fn a_shape_is_tried_on_samples() {
    let folder = tempfile::tempdir().unwrap();
    let shaped = Shaped::new(&["id"], &["id"]);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("shardwalker.toml", &shaped.text(LINES));
    let good = [
        event("a", "WA", "x"),
        event("b", "OR", "x"),
        json!({ "old": event("c", "WA", "x"), "new": event("c", "OR", "x") }),
        json!({ "old": event("d", "WA", "x"), "new": null }),
    ];
    let text = |items: &[Value]| items.iter().map(|item| format!("{item}\n")).collect::<String>();
    write("good.jsonl", &text(&good));
    let (code, out, said) =
        run(folder.path(), &["shape", "try", "copy", "--items", "good.jsonl", "--key", "id", "--json"]).await;
    assert_eq!(code, 0, "{out}{said}");
    assert!(said.contains("1 put, 2 deleted, 1 skipped by the filter, 0 cannot be shaped"), "{said}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<&str> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["put", "skip", "delete", "delete"]);
    assert_eq!(lines[0]["after"]["key"], json!({ "S": "a" }));
    assert_eq!(lines[0]["after"]["more"]["S"].as_str().map(str::len), Some(64));
    assert_eq!(lines[2]["key"], json!({ "key": { "S": "c" } }));

    write("bad.jsonl", &text(&[event("a", "WA", "x"), json!({ "id": { "S": "b" } })]));
    let (code, out, said) =
        run(folder.path(), &["shape", "try", "copy", "--items", "bad.jsonl", "--key", "id"]).await;
    assert_eq!(code, 1, "{out}{said}");
    assert!(
        out.contains("line 1: put")
            && out.contains("line 2: CANNOT BE SHAPED: the filter: there is no attribute state"),
        "{out}"
    );

    // What is wrong in the config is told with its place there.
    write("shardwalker.toml", &shaped.text("[route.shape]\nfilter = 'item.state = \"WA\"'\n"));
    let (code, out, said) = run(folder.path(), &["shape", "try", "copy", "--items", "bad.jsonl"]).await;
    let line =
        1 + shaped.text("[route.shape]\nfilter").lines().position(|line| line.starts_with("filter")).unwrap();
    assert!(
        code == 1 && said.contains(&format!("shardwalker.toml:{line}:")) && said.contains("\"filter\""),
        "{out}{said}"
    );
}
