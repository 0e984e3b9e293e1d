//! Which way of writing a large file is the faster one here and now: through the page cache, around it, or through it without staying there.
//!
//! None always is. The cache takes bytes as fast as memory does, until too many of them wait for the disk, or while free pages are
//! easy to find; bytes that only pass through it hold few pages, which are soon free for the next ones; direct writes go at the disk's
//! speed whatever the memory is like. So each way that is worth it gets a trial, the faster one goes on, and is left as soon as it falls
//! behind what the other last gave.

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the page cache, without staying there.
    Passing,
    /// Around it.
    Direct,
    /// Through it.
    Cached,
}

/// What each way gave when it was last taken.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// So many bytes a second of the first way need no comparison.
    fast: f64,
    /// The first two are compared; the others are for when one of them does not work. With bytes a second.
    ways: Vec<(Way, Option<f64>)>,
}

impl Pace {
    /// Nothing is known yet. There is at least one way.
    pub(crate) fn new(fast: f64, ways: &[Way]) -> Pace {
        let ways = ways.iter().map(|&way| (way, None)).collect();
        Pace { fast, ways }
    }

    /// The way to take next.
    pub(crate) fn way(&self) -> Way {
        match self.ways[..] {
            [(_, Some(first)), (other, None), ..] if first < self.fast => other,
            [(_, Some(first)), (other, Some(second)), ..] if first < second => other,
            _ => self.ways[0].0,
        }
    }

    /// So many bytes took so long.
    pub(crate) fn took(&mut self, way: Way, bytes: u64, seconds: f64) {
        let known = self.ways.iter_mut().filter(|(known, _)| *known == way);
        known.for_each(|(_, rate)| *rate = Some(bytes as f64 / seconds.max(1e-9)));
    }

    /// From now on this way, if there is such, is the one to begin with.
    pub(crate) fn prefer(&mut self, way: Way) {
        self.ways.sort_by_key(|(known, _)| *known != way);
    }

    /// This file system has no such way; there is another.
    pub(crate) fn cannot(&mut self, way: Way) {
        self.ways.retain(|(known, _)| *known != way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways that are taken where each gives so much, stretch by stretch, in bytes a second.
    fn ways(direct: &[f64], cached: &[f64]) -> String {
        let mut pace = Pace::new(1.5e9, &[Way::Direct, Way::Cached]);
        let mut said = String::new();
        for (direct, cached) in direct.iter().zip(cached) {
            let way = pace.way();
            let (rate, letter) = match way {
                Way::Direct => (direct, 'd'),
                Way::Cached => (cached, 'c'),
                Way::Passing => unreachable!("it is not among the ways"),
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

    #[test]
    fn what_does_not_work_is_not_tried_again() {
        let mut pace = Pace::new(1.5e9, &[Way::Passing, Way::Direct, Way::Cached]);
        assert_eq!(pace.way(), Way::Passing);
        pace.took(Way::Passing, 1, 1.0);
        assert_eq!(pace.way(), Way::Direct);
        pace.cannot(Way::Direct);
        assert_eq!(pace.way(), Way::Cached);
        pace.took(Way::Cached, 1, 2.0);
        assert_eq!(pace.way(), Way::Passing);
        pace.prefer(Way::Cached);
        assert_eq!(pace.way(), Way::Passing);
        pace.cannot(Way::Passing);
        assert_eq!(pace.way(), Way::Cached);
    }
}
