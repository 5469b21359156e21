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
