//! Random histories, seeded: writes, a backfill beside them, lost answers and workers that die; in the end the target is the
//! shaped source.

use super::{Shaped, event};
use crate::world::eventually;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use shardwalker::backfill::Ended;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;

const SHAPES: [(&str, &[&str]); 3] = [
    ("[route.shape]\nfilter = 'item.state != \"OR\"'\nexclude = [\"more\"]\n", &["id"]),
    ("[route.shape]\nattribute_equals = { state = \"WA\" }\nkeys = { pk = \"E-{id}\" }\n", &["pk"]),
    (
        "[route.shape]\nfilter = 'item.state == \"WA\" || item.more == \"3\"'\nrename = { id = \"key\" }\n",
        &["key"],
    ),
];

async fn write(shaped: &Shaped, random: &mut StdRng) {
    let id = format!("k{}", random.random_range(0..12));
    if random.random_ratio(1, 4) {
        shaped.delete(json!({ "id": { "S": id } })).await;
    } else {
        let state = ["WA", "OR", "CA"][random.random_range(0..3)];
        shaped.put(event(&id, state, &random.random_range(0..5).to_string())).await;
    }
}

async fn history(seed: u64) {
    eprintln!("SHAPE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (lines, keys) = SHAPES[random.random_range(0..SHAPES.len())];
    let shaped = Shaped::new(&["id"], keys);
    for _ in 0..20 {
        write(&shaped, &mut random).await;
    }
    for operation in ["PutItem", "DeleteItem"] {
        let rule = Rule::new(Effect::DropAnswer).operation(operation).account(crate::world::PEERS[0].0);
        shaped.world.sandbox.faults().add(rule.probability(0.1));
    }
    let mut worker = Some(shaped.worker(lines).await);
    let load = async {
        for step in 0..60 {
            write(&shaped, &mut random).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..900))).await;
            if step % 20 == 10 {
                worker.take().unwrap().kill().await;
                worker = Some(shaped.worker(lines).await);
            }
        }
    };
    let (ended, ()) = tokio::join!(shaped.backfill(lines, false), load);
    assert_eq!(ended.unwrap(), Ended::Done);
    eventually(&format!("seed {seed}: the target is the shaped source"), || {
        shaped.there(lines) == shaped.wanted(lines)
    })
    .await;
    worker.unwrap().stop().await.unwrap();
    assert_eq!(shaped.letters(), [], "seed {seed}");
    let (tally, told): (_, Vec<Value>) = shaped.verify(lines, false).await.unwrap();
    assert_eq!(tally.remaining(), 0, "seed {seed}: {told:?}");
}

/// `SHAPE_SEED` runs one of them again.
#[tokio::test(start_paused = true)]
async fn the_target_is_the_shaped_source_whatever_happens() {
    let seeds = match std::env::var("SHAPE_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).unwrap(),
        Err(_) => 0..8,
    };
    for seed in seeds {
        Box::pin(history(seed)).await;
    }
}
