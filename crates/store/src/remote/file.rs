//! A remote file: positioned reads, served from what was fetched ahead.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Runtime;

use super::cache::Pieces;
use super::error::{Problem, RemoteError};
use super::object::{Object, Pin};
use super::plan::Plan;
use super::pool::Pool;
use crate::source::ReadAt;

/// Plans that are remembered. Who announces more at a time than this, and reads none of it, is no longer believed.
const PLANS_MAX: usize = 64;

/// Of what was read in one run without announcement, this part is fetched ahead: so never more than that is in vain.
const AHEAD_SHARE: u64 = 8;

/// A file behind a URL, pinned to its content.
///
/// Reading blocks and may be done by many threads. Bytes that were announced ([`ReadAt::will_read`]) are fetched in
/// parts, several at the same time; others as they are asked for.
pub struct RemoteFile {
    inner: Arc<Inner>,
    pool: Arc<Pool>,
}

pub(crate) struct Inner {
    object: Object,
    pin: Pin,
    /// The file's beginning, or all of it where the server has no ranges.
    prefix: Vec<u8>,
    pieces: Option<Pieces>,
    part_bytes: u64,
    window_bytes: u64,
    over_read: f64,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    plans: VecDeque<(u64, Plan)>,
    /// The number of the next plan or part.
    next_number: u64,
    /// What is being fetched, and what came and was not read to its end: by start.
    parts: BTreeMap<u64, Part>,
    /// The bytes of all `parts`.
    held_bytes: u64,
    /// Where the last read ended, and how long the run is that it ended.
    last_end: u64,
    run_bytes: u64,
}

struct Part {
    byte_count: u64,
    /// Parts have numbers, so that the oldest are dropped first.
    number: u64,
    /// The plan it was taken from.
    plan: Option<u64>,
    content: Content,
}

enum Content {
    Coming,
    Here(Arc<Vec<u8>>),
    Failed(RemoteError),
}

/// How much was asked of the server for one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, those for credentials and redirects not counted.
    pub requests: u64,
    /// Bytes of the file that came.
    pub received_bytes: u64,
}

/// How a file is read, see `RemoteOptions`.
pub(crate) struct Reading {
    pub(crate) part_bytes: u64,
    pub(crate) window_bytes: u64,
    pub(crate) over_read: f64,
}

impl RemoteFile {
    pub(crate) fn new(
        object: Object,
        pin: Pin,
        prefix: Vec<u8>,
        pieces: Option<Pieces>,
        pool: Arc<Pool>,
        reading: &Reading,
    ) -> RemoteFile {
        let inner = Inner {
            object,
            pin,
            prefix,
            pieces,
            part_bytes: reading.part_bytes.max(1),
            window_bytes: reading.window_bytes,
            over_read: reading.over_read,
            state: Mutex::default(),
            arrived: Condvar::new(),
        };
        RemoteFile {
            inner: Arc::new(inner),
            pool,
        }
    }

    /// The URL, without secrets.
    pub fn shown(&self) -> &str {
        &self.inner.object.place.shown
    }

    /// The ETag that it is pinned to, if the server has ETags.
    pub fn etag(&self) -> Option<&str> {
        self.inner.pin.marks.etag.as_deref()
    }

    /// How much was asked of the server so far.
    pub fn traffic(&self) -> Traffic {
        let object = &self.inner.object;
        Traffic {
            requests: object.requests.load(Ordering::Relaxed),
            received_bytes: object.received_bytes.load(Ordering::Relaxed),
        }
    }

    /// Fetches what `offset` needs, and what was announced to follow it.
    fn fetch_from(&self, state: &mut State, offset: u64, wanted: u64) -> io::Result<()> {
        let inner = &self.inner;
        state.make_room(inner.window_bytes);
        let announced = state.plans.iter_mut().find_map(|(number, plan)| {
            plan.holds(offset)?;
            Some((*number, plan.take(offset, inner.part_bytes)?))
        });
        match announced {
            Some((plan, (start, end))) => {
                self.fetch(state, start, end, Some(plan))?;
                self.fetch_ahead(state, offset, plan)
            }
            None => {
                let ahead = (state.run_bytes / AHEAD_SHARE).min(inner.part_bytes);
                let end = offset.saturating_add(wanted.max(ahead));
                self.fetch(state, offset, end.min(inner.pin.file_bytes), None)
            }
        }
    }

    /// Fetches what a plan has after `offset`, as far as there is room.
    fn fetch_ahead(&self, state: &mut State, offset: u64, number: u64) -> io::Result<()> {
        let inner = &self.inner;
        while inner.window_bytes.saturating_sub(state.held_bytes) >= inner.part_bytes {
            let plan = state.plans.iter_mut().find(|(other, _)| *other == number);
            let Some((start, end)) = plan.and_then(|(_, plan)| plan.take(offset, inner.part_bytes))
            else {
                break;
            };
            self.fetch(state, start, end, Some(number))?;
        }
        state.plans.retain(|(_, plan)| !plan.is_empty());
        Ok(())
    }

    /// Has the pool fetch a range, but for those parts of it that are here or coming already.
    fn fetch(&self, state: &mut State, start: u64, end: u64, plan: Option<u64>) -> io::Result<()> {
        let mut at = start;
        while at < end {
            if let Some(there) = state.part_end(at) {
                at = there;
                continue;
            }
            let next = state
                .parts
                .range(at..)
                .next()
                .map_or(end, |(next, _)| *next);
            let stop = end.min(next);
            state.begin(at, stop - at, plan);
            let fetching = Fetching {
                inner: Arc::clone(&self.inner),
                start: at,
                end: stop,
                done: false,
            };
            let started = self.pool.submit(move |runtime| fetching.run(runtime));
            if let Err(error) = started {
                state.forget(at);
                return Err(error);
            }
            at = stop;
        }
        Ok(())
    }
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile")
            .field("url", &self.shown())
            .field("etag", &self.etag())
            .field("file_bytes", &self.inner.pin.file_bytes)
            .finish_non_exhaustive()
    }
}

impl ReadAt for RemoteFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = &self.inner;
        let left = inner.pin.file_bytes.saturating_sub(offset);
        let wanted = left.min(buffer.len() as u64);
        if wanted == 0 {
            return Ok(0);
        }
        let skipped = usize::try_from(offset).ok();
        if let Some(there) = skipped.and_then(|offset| inner.prefix.get(offset..))
            && !there.is_empty()
        {
            return Ok(copy(buffer, there));
        }
        let mut state = inner.lock();
        loop {
            match state.part_at(offset) {
                Some((_, Content::Coming)) => state = inner.wait(state),
                Some((start, Content::Here(bytes))) => {
                    let bytes = Arc::clone(bytes);
                    let from = (offset - start) as usize;
                    let count = bytes.len().saturating_sub(from).min(wanted as usize);
                    if let Some(plan) = state.was_read(start, offset, count as u64) {
                        // What fails here is tried again when it is needed.
                        let _ = self.fetch_ahead(&mut state, offset, plan);
                    }
                    drop(state);
                    let part = bytes.get(from..from + count).unwrap_or_default();
                    return Ok(copy(buffer, part));
                }
                Some((start, Content::Failed(error))) => {
                    let error = error.clone();
                    state.forget(start);
                    return Err(error.into());
                }
                None => {
                    // Much at once, unannounced: it is fetched in parts all the same.
                    if wanted > inner.part_bytes
                        && !state
                            .plans
                            .iter()
                            .any(|(_, plan)| plan.holds(offset).is_some())
                    {
                        let plan = Plan::new(&[(offset, offset + wanted)], u64::MAX, 0.0);
                        state.announce(plan);
                    }
                    self.fetch_from(&mut state, offset, wanted)?;
                }
            }
        }
    }

    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.inner.pin.file_bytes)
    }

    fn will_read(&self, ranges: &[(u64, u64)]) {
        let inner = &self.inner;
        let there = inner.prefix.len() as u64;
        let missing: Vec<(u64, u64)> = ranges
            .iter()
            .map(|&(start, end)| (start.max(there), end))
            .collect();
        let plan = Plan::new(&missing, inner.pin.file_bytes, inner.over_read);
        inner.lock().announce(plan);
    }
}

fn copy(buffer: &mut [u8], from: &[u8]) -> usize {
    let count = buffer.len().min(from.len());
    buffer[..count].copy_from_slice(&from[..count]);
    count
}

impl State {
    fn announce(&mut self, plan: Plan) {
        if plan.is_empty() {
            return;
        }
        // The latest is looked at first: an earlier one may have been given up.
        let number = self.number();
        self.plans.push_front((number, plan));
        self.plans.truncate(PLANS_MAX);
    }

    /// The part that `offset` lies in.
    fn part_at(&self, offset: u64) -> Option<(u64, &Content)> {
        let (&start, part) = self.parts.range(..=offset).next_back()?;
        (offset - start < part.byte_count).then_some((start, &part.content))
    }

    fn part_end(&self, offset: u64) -> Option<u64> {
        let (start, _) = self.part_at(offset)?;
        Some(start + self.parts.get(&start)?.byte_count)
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn begin(&mut self, start: u64, byte_count: u64, plan: Option<u64>) {
        let part = Part {
            byte_count,
            number: self.number(),
            plan,
            content: Content::Coming,
        };
        self.parts.insert(start, part);
        self.held_bytes += byte_count;
    }

    fn forget(&mut self, start: u64) {
        if let Some(part) = self.parts.remove(&start) {
            self.held_bytes -= part.byte_count;
        }
    }

    /// Notes what was read. A part that was read to its end is not kept: then there is room for more of its plan.
    fn was_read(&mut self, start: u64, offset: u64, byte_count: u64) -> Option<u64> {
        self.run_bytes = match offset == self.last_end {
            true => self.run_bytes.saturating_add(byte_count),
            false => byte_count,
        };
        self.last_end = offset + byte_count;
        if self.part_end(start) != Some(self.last_end) {
            return None;
        }
        let plan = self.parts.get(&start).and_then(|part| part.plan);
        self.forget(start);
        plan
    }

    /// Drops the oldest parts that came and were left lying, when there are too many.
    fn make_room(&mut self, window_bytes: u64) {
        while self.held_bytes > window_bytes {
            let idle = self
                .parts
                .iter()
                .filter(|(_, part)| !matches!(part.content, Content::Coming));
            let oldest = idle.min_by_key(|(_, part)| part.number);
            let Some(start) = oldest.map(|(start, _)| *start) else {
                return;
            };
            self.forget(start);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.arrived
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A range, from the cache and from the server.
    fn bring(&self, runtime: &Runtime, start: u64, end: u64) -> Result<Vec<u8>, RemoteError> {
        let Some(pieces) = &self.pieces else {
            return self.object.range(runtime, start..end, &self.pin);
        };
        let mut bytes = Vec::new();
        let mut at = start;
        while at < end {
            let more = match pieces.read(at, end - at) {
                Ok(cached) => cached,
                Err(next) => {
                    let fetched = self.object.range(runtime, at..next.min(end), &self.pin)?;
                    pieces.keep(at, &fetched);
                    fetched
                }
            };
            at += more.len() as u64;
            match bytes.is_empty() {
                true => bytes = more,
                false => bytes.extend_from_slice(&more),
            }
        }
        Ok(bytes)
    }
}

/// A part on its way. However it ends, those who wait are told.
struct Fetching {
    inner: Arc<Inner>,
    start: u64,
    end: u64,
    done: bool,
}

impl Fetching {
    fn run(mut self, runtime: &Runtime) {
        let content = match self.inner.bring(runtime, self.start, self.end) {
            Ok(bytes) => Content::Here(Arc::new(bytes)),
            Err(error) => Content::Failed(error),
        };
        self.finish(content);
    }

    fn finish(&mut self, content: Content) {
        self.done = true;
        let mut state = self.inner.lock();
        if let Some(part) = state.parts.get_mut(&self.start) {
            part.content = content;
        }
        drop(state);
        self.inner.arrived.notify_all();
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if !self.done {
            let what = "the request thread ended early".to_owned();
            let range = self.start..self.end;
            let error = self
                .inner
                .object
                .error(&range, 0, None, Problem::Network(what));
            self.finish(Content::Failed(error));
        }
    }
}
