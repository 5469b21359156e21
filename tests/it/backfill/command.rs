//! The command as the real binary, on the sandbox over TCP, in real time.

use super::{allow, put_at};
use crate::process::Served;
use crate::world::PEERS;
use serde_json::Value;

#[tokio::test]
async fn the_command_says_what_it_did_and_status_shows_it() {
    let served = Served::new().await;
    let world = &served.world;
    // The service has seen the stream, and is away.
    let process = served.run("25s").await;
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
    allow(world, &["DescribeTable"]);
    for item in 0..40 {
        world.put(&format!("k{item}"), "before").await;
    }
    put_at(world, PEERS[0].0, "orders-copy", "k7", "theirs").await;
    let (code, out, said) = served.command(&["backfill", "copy"]).await;
    assert!(code == 1 && said.contains("\"dynamodb:Scan\""), "{out}{said}");
    allow(world, &["DescribeTable", "Scan"]);
    let (code, out, _) = served.command(&["status", "--wait", "backfilled", "--timeout", "1s"]).await;
    assert_eq!(code, 1, "none was begun: {out}");
    let (code, _, said) = served.command(&["backfill", "copy"]).await;
    assert!(code == 1 && said.contains("1 at b on one page"), "{said}");
    let (code, out, _) = served.command(&["status"]).await;
    assert!(code == 1 && out.contains("route copy: a backfill stopped\n"), "{out}");
    let (code, out, said) = served.command(&["backfill", "copy", "--on-existing", "keep", "--json"]).await;
    assert_eq!(code, 0, "{out}{said}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&shown["state"], &shown["items"]), (&"done".into(), &40.into()), "{out}");
    assert_eq!(shown["peers"]["b"]["existing_kept"], 1);
    assert!(said.contains(" segments, ") && said.contains("items/s"), "{said}");
    assert!(said.contains("no worker of the service walks this route"), "{said}");
    assert_eq!(world.items(&world.peers[1]), world.items(&world.source));
    let (code, out, _) = served.command(&["status", "--wait", "backfilled", "--timeout", "5s"]).await;
    assert!(code == 0 && out.contains("BACKFILL") && out.contains("8 of 8"), "{out}");
    let (code, out, said) = served.command(&["backfill", "copy"]).await;
    assert!(
        code == 0 && out.contains("copy: 40 items") && said.contains("--restart begins it anew"),
        "{out}{said}"
    );
    let (code, _, said) = served.command(&["backfill", "cpoy"]).await;
    assert!(code == 2 && said.contains("the routes are copy"), "{said}");
}
