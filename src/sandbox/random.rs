//! The sandbox's one source of chance: everything that looks random follows from the seed.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::sync::{Arc, Mutex, PoisonError};

/// Seeded chance; clones draw from the same sequence.
#[derive(Debug, Clone)]
pub struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    /// The sequence of a seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    fn draw<T>(&self, from: impl FnOnce(&mut StdRng) -> T) -> T {
        from(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether an event of this probability (0 to 1) happens now. Draws nothing at 0 and at 1.
    #[must_use]
    pub fn happens(&self, probability: f64) -> bool {
        probability > 0.0 && (probability >= 1.0 || self.draw(|rng| rng.random_bool(probability)))
    }

    /// A number below `bound`, which must not be zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.draw(|rng| rng.random_range(0..bound))
    }

    /// So many random bytes in lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self, bytes: usize) -> String {
        let mut raw = vec![0; bytes];
        self.draw(|rng| rng.fill_bytes(&mut raw));
        hex::encode(raw)
    }

    /// So many characters of the alphabet.
    #[must_use]
    pub fn text(&self, alphabet: &[u8], length: usize) -> String {
        self.draw(|rng| {
            (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
        })
    }

    /// A random UUID (version 4).
    #[must_use]
    pub fn uuid(&self) -> String {
        let h = self.hex(16);
        format!("{}-{}-4{}-a{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..])
    }
}
