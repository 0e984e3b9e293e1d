//! Which way of writing a large file is the faster one here and now: through the page cache, or around it.
//!
//! Neither always is. The cache takes bytes as fast as memory does, until too many of them wait for the disk, or while free pages are
//! easy to find; direct writes go at the disk's speed whatever the memory is like. So each way gets a trial, the faster one
//! goes on, and is left as soon as it falls behind what the other last gave.

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Around the page cache.
    Direct,
    /// Through it.
    Cached,
}

/// What each way gave when it was last taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A disk this fast, in bytes a second, needs no comparison.
    fast: f64,
    /// Bytes a second.
    direct: Option<f64>,
    cached: Option<f64>,
}

impl Pace {
    /// Nothing is known yet; a disk that gives `fast` bytes a second is good enough.
    pub(crate) fn new(fast: f64) -> Pace {
        Pace {
            fast,
            direct: None,
            cached: None,
        }
    }

    /// The way to take next.
    pub(crate) fn way(&self) -> Way {
        match (self.direct, self.cached) {
            (None, _) => Way::Direct,
            (Some(direct), None) if direct >= self.fast => Way::Direct,
            (Some(_), None) => Way::Cached,
            (Some(direct), Some(cached)) if direct >= cached => Way::Direct,
            _ => Way::Cached,
        }
    }

    /// So many bytes took so long.
    pub(crate) fn took(&mut self, way: Way, bytes: u64, seconds: f64) {
        let rate = Some(bytes as f64 / seconds.max(1e-9));
        match way {
            Way::Direct => self.direct = rate,
            Way::Cached => self.cached = rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways that are taken where each gives so much, stretch by stretch, in bytes a second.
    fn ways(direct: &[f64], cached: &[f64]) -> String {
        let (mut pace, mut said) = (Pace::new(1.5e9), String::new());
        for (direct, cached) in direct.iter().zip(cached) {
            let way = pace.way();
            let (rate, letter) = match way {
                Way::Direct => (direct, 'd'),
                Way::Cached => (cached, 'c'),
            };
            pace.took(way, 1_000_000, 1e6 / rate);
            said.push(letter);
        }
        said
    }

    #[test]
    fn the_faster_way_goes_on() {
        assert_eq!(ways(&[4e8; 6], &[1e9; 6]), "dccccc");
        assert_eq!(ways(&[4e8; 6], &[1e8; 6]), "dcdddd");
        // A fast disk is not compared.
        assert_eq!(ways(&[2e9; 6], &[9e9; 6]), "dddddd");
    }

    #[test]
    fn what_becomes_slow_is_left() {
        // Too much waits for the disk from the fourth stretch on.
        let cached = [1e9, 1e9, 1e9, 2e8, 2e8, 2e8, 2e8];
        assert_eq!(ways(&[4e8; 7], &cached), "dcccddd");
        // The disk has others to serve from the third stretch on.
        let direct = [9e8, 9e8, 9e8, 1e8, 1e8, 1e8, 1e8];
        assert_eq!(ways(&direct, &[5e8; 7]), "dcddccc");
    }
}
