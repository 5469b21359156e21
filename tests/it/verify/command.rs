//! The command as the real binary, on the sandbox over TCP, in real time.

use super::{allow, differences, lines};
use crate::process::Served;
use serde_json::Value;

#[tokio::test]
async fn the_command_lists_what_differs_and_mends_it() {
    let served = Served::new().await;
    let world = &served.world;
    allow(world);
    let process = served.run("20s").await;
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
    for item in 0..20 {
        world.put(&format!("k{item}"), "unsent").await;
    }
    let command = ["verify", "copy", "--peer", "b", "--settle", "1s"];
    let (code, out, said) = served.command(&command).await;
    assert_eq!(code, 1, "{out}{said}");
    let told: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(differences(&told).len(), 20);
    assert!(said.contains("differences: 20 missing; 0 repaired, 20 remain"), "{said}");
    assert!(!out.contains("unsent"), "no values but those of keys");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("differences");
    let output = ["--repair", "--output", file.to_str().unwrap(), "--json"];
    let (code, out, said) = served.command(&[&command[..], &output].concat()).await;
    assert_eq!(code, 0, "{out}{said}");
    let tally: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&tally["repaired"], &tally["compared"]), (&20.into(), &20.into()), "{out}");
    assert!(lines(&file).last().unwrap().get("summary").is_some());
    let (code, _, said) = served.command(&command).await;
    assert!(code == 0 && said.contains("20 keys compared: 20 equal"), "{said}");
    let (code, out, said) = served.command(&["verify", "copy", "--schema"]).await;
    assert!(code == 1 && out.contains("SETTING") && out.contains("stream"), "{out}{said}");
    let (_, out, _) = served.command(&["verify", "copy", "--schema", "--json"]).await;
    let differing: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(differing[0]["setting"], "stream", "{out}");
    let (code, _, said) = served.command(&["verify", "nothing"]).await;
    assert!(code == 2 && said.contains("there are copy"), "{said}");
    let (code, _, said) = served.command(&["verify", "copy", "--prefer", "source"]).await;
    assert!(code == 2 && said.contains("--repair"), "{said}");
}
