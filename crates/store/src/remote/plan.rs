//! Which bytes to fetch: announced ranges, drawn together where that costs little, and handed out in parts.

use std::collections::BTreeMap;

/// A request and the head of its answer have more bytes than this: reading over such a gap moves less, not more.
const FREE_GAP_BYTES: u64 = 512;

/// Ranges that were announced together and not fetched yet: start and end, disjoint.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    ranges: BTreeMap<u64, u64>,
}

impl Plan {
    /// Draws ranges together over tiny gaps, and over the smallest others as long as those are at most `over_read` of what
    /// is needed (0.2: a fifth more). Empty ranges and what lies after `end` are left out.
    pub(crate) fn new(ranges: &[(u64, u64)], end: u64, over_read: f64) -> Plan {
        let clipped = ranges
            .iter()
            .map(|&(start, stop)| (start, stop.min(end)))
            .filter(|(start, stop)| start < stop);
        let mut sorted: Vec<(u64, u64)> = clipped.collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, stop) in sorted {
            match joined.last_mut() {
                Some((_, last)) if start <= *last => *last = stop.max(*last),
                _ => joined.push((start, stop)),
            }
        }
        let needed: u64 = joined.iter().map(|(start, stop)| stop - start).sum();
        let closed = gaps_to_close(&joined, (needed as f64 * over_read) as u64);
        let mut plan = Plan::default();
        let mut open: Option<(u64, u64)> = None;
        for (position, &(start, stop)) in joined.iter().enumerate() {
            open = match open {
                Some((first, _)) if closed[position - 1] => Some((first, stop)),
                Some((first, last)) => {
                    plan.ranges.insert(first, last);
                    Some((start, stop))
                }
                None => Some((start, stop)),
            };
        }
        plan.ranges.extend(open);
        plan
    }

    /// Whether nothing is left of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The end of the range that `offset` lies in.
    pub(crate) fn holds(&self, offset: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=offset).next_back()?;
        (offset < end).then_some(end)
    }

    /// Takes the next part at or after `offset` out of it: at most `part_bytes`.
    pub(crate) fn take(&mut self, offset: u64, part_bytes: u64) -> Option<(u64, u64)> {
        let (range_start, range_end) = match self.holds(offset) {
            Some(end) => (*self.ranges.range(..=offset).next_back()?.0, end),
            None => {
                let (&start, &end) = self.ranges.range(offset..).next()?;
                (start, end)
            }
        };
        let start = offset.max(range_start);
        let end = range_end.min(start.saturating_add(part_bytes));
        self.ranges.remove(&range_start);
        if range_start < start {
            self.ranges.insert(range_start, start);
        }
        if end < range_end {
            self.ranges.insert(end, range_end);
        }
        Some((start, end))
    }
}

/// For each gap between two ranges, whether it is read over: the tiny ones, and the smallest others as far as the budget goes.
fn gaps_to_close(joined: &[(u64, u64)], budget: u64) -> Vec<bool> {
    let gaps: Vec<u64> = joined
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].1)
        .collect();
    let mut order: Vec<usize> = (0..gaps.len()).collect();
    order.sort_by_key(|&position| gaps[position]);
    let mut closed = vec![false; gaps.len()];
    let mut used = 0u64;
    for position in order {
        if gaps[position] <= FREE_GAP_BYTES {
            closed[position] = true;
            continue;
        }
        used = used.saturating_add(gaps[position]);
        if used > budget {
            break;
        }
        closed[position] = true;
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(plan: &Plan) -> Vec<(u64, u64)> {
        plan.ranges
            .iter()
            .map(|(start, end)| (*start, *end))
            .collect()
    }

    #[track_caller]
    fn check(announced: &[(u64, u64)], expected: &[(u64, u64)]) {
        assert_eq!(ranges(&Plan::new(announced, 1_000_000, 0.2)), expected);
    }

    #[test]
    fn ranges_are_drawn_together_over_small_gaps() {
        check(&[], &[]);
        check(&[(5, 5), (7, 6)], &[]);
        check(&[(0, 100), (100, 200)], &[(0, 200)]);
        check(&[(100, 200), (0, 150)], &[(0, 200)]);
        check(&[(0, 1000), (1100, 2000)], &[(0, 2000)]);
        check(&[(0, 1000), (5000, 6000)], &[(0, 1000), (5000, 6000)]);
        // The small gap, not the large one.
        check(
            &[(0, 10_000), (13_000, 23_000), (24_000, 34_000)],
            &[(0, 34_000)],
        );
        check(
            &[(0, 10_000), (16_000, 26_000), (27_000, 37_000)],
            &[(0, 10_000), (16_000, 37_000)],
        );
        check(
            &[(0, 1), (2, 3), (515, 516), (1030, 1031)],
            &[(0, 516), (1030, 1031)],
        );
        check(&[(999_990, 2_000_000)], &[(999_990, 1_000_000)]);
        check(&[(1_000_000, u64::MAX)], &[]);
    }

    #[test]
    fn never_more_than_a_fifth_is_read_over() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..500 {
            let count = random(40) + 1;
            let announced: Vec<(u64, u64)> = (0..count)
                .map(|_| {
                    let start = random(500_000);
                    (start, start + random(20_000))
                })
                .collect();
            let plan = Plan::new(&announced, 600_000, 0.2);
            let mut needed = vec![false; 600_000];
            for &(start, end) in &announced {
                needed[start as usize..end as usize].fill(true);
            }
            let needed_bytes = needed.iter().filter(|byte| **byte).count() as u64;
            let fetched: u64 = ranges(&plan).iter().map(|(start, end)| end - start).sum();
            let bound = needed_bytes + needed_bytes / 5 + count * FREE_GAP_BYTES;
            assert!(
                fetched >= needed_bytes && fetched <= bound,
                "{fetched} for {needed_bytes}"
            );
            for &(start, end) in announced.iter().filter(|(start, end)| start < end) {
                assert!(plan.holds(start).is_some_and(|there| there >= end));
            }
        }
    }

    #[test]
    fn parts_are_taken_from_where_is_read() {
        let mut plan = Plan::new(&[(0, 100), (5000, 5250)], 10_000, 0.0);
        assert_eq!(plan.holds(99), Some(100));
        assert_eq!(plan.holds(100), None);
        assert_eq!(plan.take(40, 100), Some((40, 100)));
        assert_eq!(plan.take(100, 100), Some((5000, 5100)));
        assert_eq!(plan.take(5100, 100), Some((5100, 5200)));
        assert_eq!(plan.take(5200, 100), Some((5200, 5250)));
        assert_eq!(plan.take(5250, 100), None);
        assert_eq!(ranges(&plan), [(0, 40)]);
        assert_eq!(plan.take(0, 100), Some((0, 40)));
        assert!(plan.is_empty());
    }
}
