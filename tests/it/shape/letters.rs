//! What could not be shaped, as the real binary tries it again.

use crate::process::{Served, until};
use std::process::Stdio;

/// Items with hashes of two keys must not come to lie side by side, also by way of the dead letters.
#[tokio::test]
async fn letters_are_not_retried_with_another_key_of_the_hashes() {
    let served = Served::new().await;
    let key = served.directory().join("key");
    std::fs::write(&key, "a key of sixteen bytes").unwrap();
    let shaped = |text: String| {
        format!(
            "{text}\n[route.shape]\nfilter = 'item.kind != \"none\"'\nmask = {{ value = \"hash\" }}\nmask_key_file = {key:?}\n"
        )
    };
    let process = served.run_as("25s", shaped, Stdio::inherit()).await;
    served.world.put("without a kind", "x").await;
    let kept = async || served.world.rows("dead#copy").len() >= 2;
    until("it is kept for both peers", kept).await;
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
    let (code, out, said) = served.command(&["dead-letters", "retry"]).await;
    assert!(code == 1 && !format!("{out}{said}").contains("another one"), "{out}{said}");
    std::fs::write(&key, "another key of sixteen bytes").unwrap();
    let (code, out, said) = served.command(&["dead-letters", "retry"]).await;
    assert_eq!(code, 1, "{out}{said}");
    assert!(said.contains("the key of the shape's hashes is another one"), "{out}{said}");
}

/// What a file stands for does not change: a feed's letters are shown, and are not written into it later.
#[tokio::test]
async fn letters_of_a_feed_are_shown_and_discarded_but_not_retried() {
    let served = Served::new().await;
    let lake = served.directory().join("lake");
    let shaped = |text: String| {
        let text =
            text.replace("to = [\"b\", \"c\"]", "to = [\"lake\"]\nshape = { filter = 'item.kind == \"a\"' }");
        format!("{text}\n[[feed]]\nname = \"lake\"\nurl = \"file://{}\"\nroll_age = \"1s\"\n", lake.display())
    };
    let process = served.run_as("25s", shaped, Stdio::inherit()).await;
    served.world.put("without a kind", "x").await;
    until("it is kept", async || served.world.rows("dead#copy").len() == 1).await;
    let (code, out, _) = served.command(&["status", "--json"]).await;
    assert!(code == 1 && out.contains("route copy, peer lake: 1 dead letters of 1 keys"), "{out}");
    let (code, out, said) = served.command(&["dead-letters", "retry", "--json"]).await;
    assert!(code == 1 && said.contains("backfill copy --peer lake --restart"), "{out}{said}");
    let (code, out, said) = served.command(&["dead-letters", "list", "--peer", "lake", "--json"]).await;
    assert!(code == 0 && out.contains("unshaped") && out.contains("no attribute kind"), "{out}{said}");
    let (code, out, said) = served.command(&["dead-letters", "discard", "--peer", "lake", "--yes"]).await;
    assert!(code == 0 && served.world.rows("dead#copy").is_empty(), "{out}{said}");
    let (code, _, said) = served.command(&["dead-letters", "list", "--peer", "nobody"]).await;
    assert!(code == 2 && said.contains("no route leads to"), "{said}");
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}
