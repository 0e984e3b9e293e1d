//! One object of a store: ranges of it, with retries, and the certainty that all of them are of the same content.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectStore, RetryConfig,
};
use tokio::runtime::Runtime;

use super::RemoteOptions;
use super::error::{Problem, RemoteError, harmless};
use super::place::{Kind, Place};
use super::transport::{Answer, Ask, Failure, Marks, Transport};

/// A server that asks for a longer pause than this is not waited for.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// The first pause between attempts; each later one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// For each attempt that may fail, so many answers may be cut short.
const CUTS_MAX: u32 = 8;

/// An answer that was cut short counts as an attempt in vain unless it brought so much, or an eighth of what was asked for.
const PROGRESS_BYTES: u64 = 64 * 1024;

/// After a request that failed for good, the server is left alone for so long, and who reads on is told at once.
const REST: Duration = Duration::from_secs(10);

/// An object and how to ask for it.
pub(crate) struct Object {
    pub(crate) place: Place,
    store: Arc<dyn ObjectStore>,
    path: Path,
    attempts_max: u32,
    whole_bytes_max: u64,
    /// The first pause between attempts; tests make it short.
    pause: Duration,
    /// What failed for good, and when: other requests need not find that out again, each with all its attempts.
    broken: Mutex<Option<(RemoteError, Instant)>>,
    pub(crate) requests: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
}

/// What an object is, and goes on being while it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) marks: Marks,
    pub(crate) file_bytes: u64,
}

/// How often was asked for one range: in all, and since something came last.
#[derive(Default)]
struct Tries {
    all: u32,
    in_vain: u32,
}

/// What came of a request for the first bytes.
pub(crate) enum First {
    Part(Vec<u8>, Pin),
    Whole(Vec<u8>, Pin),
    Unchanged,
}

impl Pin {
    /// The ETag, if it promises the same bytes.
    pub(crate) fn strong_etag(&self) -> Option<&str> {
        let etag = self.marks.etag.as_deref()?;
        (etag.starts_with('"') && etag.len() > 2).then_some(etag)
    }

    /// Whether an answer is about the content that is pinned. What the pin has, an answer must show: its ETag, or, if it
    /// has none, the date; a size always. A pin without any marks holds by the size alone.
    fn compare(&self, now: &Pin) -> Agreement {
        let (ours, theirs) = (&self.marks, &now.marks);
        let etags = compare_marks(ours.etag.as_ref(), theirs.etag.as_ref());
        let dates = compare_marks(ours.last_modified.as_ref(), theirs.last_modified.as_ref());
        if self.file_bytes != now.file_bytes || etags == Some(false) {
            return Agreement::Other;
        }
        // Mirrors of one file may have other dates; a strong ETag says more.
        if etags == Some(true) && self.strong_etag().is_some() {
            return Agreement::Same;
        }
        match (etags, dates) {
            (_, Some(false)) => Agreement::Other,
            (Some(true), _) | (_, Some(true)) => Agreement::Same,
            _ if ours.etag.is_none() && ours.last_modified.is_none() => Agreement::Same,
            _ => Agreement::Unknown,
        }
    }

    /// For messages.
    fn shown(&self) -> String {
        describe(&self.marks, Some(self.file_bytes))
    }
}

/// What an answer says of the content that is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    Same,
    Other,
    /// It has none of the marks by which that could be told.
    Unknown,
}

/// Whether a mark is the same; `None` if one of the two is not there.
fn compare_marks(ours: Option<&String>, theirs: Option<&String>) -> Option<bool> {
    Some(ours? == theirs?)
}

fn describe(marks: &Marks, file_bytes: Option<u64>) -> String {
    let mut parts = Vec::new();
    if let Some(etag) = &marks.etag {
        parts.push(format!("ETag {}", harmless(etag)));
    } else if let Some(date) = &marks.last_modified {
        parts.push(format!("of {}", harmless(date)));
    }
    if let Some(bytes) = file_bytes {
        parts.push(format!("{bytes} bytes"));
    }
    if parts.is_empty() {
        return "something else".to_owned();
    }
    parts.join(", ")
}

impl Object {
    /// Prepares requests; nothing is sent yet.
    pub(crate) fn new(
        place: Place,
        transport: &Transport,
        options: &RemoteOptions,
    ) -> Result<Object, RemoteError> {
        let (store, path) =
            store_of(&place, transport, &options.settings).map_err(|error| RemoteError {
                url: place.shown.clone(),
                range: (0, 0),
                attempts: 0,
                status: None,
                problem: Problem::Settings(harmless(&chain(&error))),
            })?;
        Ok(Object {
            place,
            store,
            path,
            attempts_max: options.attempts_max.max(1),
            whole_bytes_max: options.whole_file_bytes_max,
            pause: PAUSE_FIRST.min(options.timeout),
            broken: Mutex::new(None),
            requests: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        })
    }

    /// The first `byte_count` bytes, and what the object is; or that it still has the ETag that is `known`.
    pub(crate) fn first(
        &self,
        runtime: &Runtime,
        byte_count: u64,
        known: Option<&str>,
    ) -> Result<First, RemoteError> {
        let mut bytes = Vec::new();
        let mut pin: Option<Pin> = None;
        let mut tries = Tries::default();
        loop {
            let range = bytes.len() as u64..byte_count;
            let known = known.filter(|_| pin.is_none());
            let answer = self.attempts(runtime, &range, pin.as_ref(), known, &mut tries)?;
            match answer {
                Answer::Unchanged if known.is_some() => return Ok(First::Unchanged),
                Answer::Unchanged => return Err(self.unasked(&range, tries.all)),
                Answer::Whole { bytes, marks } => {
                    let file_bytes = bytes.len() as u64;
                    return Ok(First::Whole(bytes, Pin { marks, file_bytes }));
                }
                Answer::Part {
                    bytes: more,
                    file_bytes,
                    marks,
                    ..
                } => {
                    bytes.extend_from_slice(&more);
                    let pin = pin.get_or_insert(Pin { marks, file_bytes });
                    if bytes.len() as u64 >= byte_count.min(pin.file_bytes) {
                        return Ok(First::Part(bytes, pin.clone()));
                    }
                }
                Answer::Replaced(marks) => {
                    let was = pin.map_or_else(|| "another".to_owned(), |pin| pin.shown());
                    let now = describe(&marks, None);
                    return Err(self.changed(&range, tries.all, 412, was, now));
                }
            }
        }
    }

    /// The bytes of a range, as [`Object::whole_range`] gives them; but where a request has failed for good, no other is
    /// made for a while (if the object was replaced: none any more), and each has the same cause. Else all who read on
    /// would try as long, one after the other.
    pub(crate) fn range(
        &self,
        runtime: &Runtime,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<Vec<u8>, RemoteError> {
        let bytes = self.whole_range(runtime, range, pin);
        bytes.map_err(|error| {
            let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            match broken.as_ref().and_then(in_force) {
                Some(known) if is_changed(&known) || !is_changed(&error) => known,
                _ => {
                    *broken = Some((error.clone(), Instant::now()));
                    error
                }
            }
        })
    }

    /// What failed for good, a moment ago.
    fn broken(&self) -> Option<RemoteError> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.as_ref().and_then(in_force)
    }

    /// The bytes of a range that lies inside the object, all of the content that is pinned.
    fn whole_range(
        &self,
        runtime: &Runtime,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<Vec<u8>, RemoteError> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut tries = Tries::default();
        loop {
            let rest = range.start + bytes.len() as u64..range.end;
            match self.attempts(runtime, &rest, Some(pin), None, &mut tries)? {
                Answer::Part { bytes: more, .. } if bytes.is_empty() => bytes = more,
                Answer::Part { bytes: more, .. } => bytes.extend_from_slice(&more),
                // It has ranges, or it had; some servers give the whole file when they are busy.
                Answer::Whole { bytes: all, .. } => {
                    let (start, end) = (range.start as usize, range.end as usize);
                    return all.get(start..end).map(<[u8]>::to_vec).ok_or_else(|| {
                        let what = "a file that is shorter than it was".to_owned();
                        self.error(&range, tries.all, Some(200), Problem::BadAnswer(what))
                    });
                }
                Answer::Unchanged => return Err(self.unasked(&rest, tries.all)),
                Answer::Replaced(marks) => {
                    let now = self.now(runtime, marks);
                    return Err(self.changed(&rest, tries.all, 412, pin.shown(), now));
                }
            }
            if bytes.len() as u64 >= range.end - range.start {
                return Ok(bytes);
            }
        }
    }

    /// Asks until there is an answer that brings something, or no attempt is left.
    ///
    /// An answer that was cut short, but brought something, is no failure: the rest is asked for. A server that brings
    /// a little each time is still not asked without end.
    fn attempts(
        &self,
        runtime: &Runtime,
        range: &Range<u64>,
        pin: Option<&Pin>,
        known: Option<&str>,
        tries: &mut Tries,
    ) -> Result<Answer, RemoteError> {
        let mut pause = self.pause;
        loop {
            if let Some(error) = self.broken() {
                return Err(error);
            }
            tries.all += 1;
            tries.in_vain += 1;
            let failure = match self.ask(runtime, range, pin, known) {
                Ok(Answer::Part {
                    bytes,
                    cut: Some(failure),
                    ..
                }) if bytes.is_empty() || self.is_last(tries, brings_much(&bytes, range)) => {
                    failure
                }
                Ok(answer) => {
                    self.check(range, tries.all, pin, &answer)?;
                    match &answer {
                        Answer::Part {
                            bytes,
                            cut: Some(_),
                            ..
                        } if !brings_much(bytes, range) => {}
                        _ => tries.in_vain = 0,
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let error = self.error(range, tries.all, failure.status, failure.problem);
            let wait = failure.retry_after.unwrap_or(pause);
            if !error.is_passing() || self.is_last(tries, false) || wait > PAUSE_MAX {
                return Err(error);
            }
            // Ranges that failed together should not all be asked for again together.
            let jitter = pause.mul_f64((range.start / 4096 % 16) as f64 / 32.0);
            thread::sleep(wait + jitter);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether no attempt is left after one that brought much, or did not.
    fn is_last(&self, tries: &Tries, brought_much: bool) -> bool {
        let in_vain = !brought_much && tries.in_vain >= self.attempts_max;
        in_vain || tries.all >= CUTS_MAX * self.attempts_max
    }

    /// That an answer is about the content that is pinned.
    fn check(
        &self,
        range: &Range<u64>,
        attempts: u32,
        pin: Option<&Pin>,
        answer: &Answer,
    ) -> Result<(), RemoteError> {
        let (marks, file_bytes) = match answer {
            Answer::Part {
                marks, file_bytes, ..
            } => (marks, *file_bytes),
            Answer::Whole { marks, bytes } => (marks, bytes.len() as u64),
            Answer::Unchanged | Answer::Replaced(_) => return Ok(()),
        };
        let now = Pin {
            marks: marks.clone(),
            file_bytes,
        };
        let status = match answer {
            Answer::Whole { .. } => 200,
            _ => 206,
        };
        let Some(pin) = pin else {
            return Ok(());
        };
        match pin.compare(&now) {
            Agreement::Same => Ok(()),
            Agreement::Other => {
                Err(self.changed(range, attempts, status, pin.shown(), now.shown()))
            }
            Agreement::Unknown => {
                let was = pin.shown();
                Err(self.error(range, attempts, Some(status), Problem::Unmarked { was }))
            }
        }
    }

    /// One request.
    fn ask(
        &self,
        runtime: &Runtime,
        range: &Range<u64>,
        pin: Option<&Pin>,
        known: Option<&str>,
    ) -> Result<Answer, Failure> {
        let has_etag = pin.is_some_and(|pin| pin.marks.etag.is_some());
        let ask = Arc::new(Ask {
            range: range.clone(),
            unmodified_since: pin
                .filter(|_| !has_etag && self.place.kind == Kind::Http)
                .and_then(|pin| pin.marks.last_modified.clone()),
            token: self.place.token.clone(),
            follow: self.place.kind == Kind::Http,
            whole_bytes_max: self.whole_bytes_max,
            outcome: Mutex::new(None),
        });
        let mut options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: pin.and_then(Pin::strong_etag).map(str::to_owned),
            if_none_match: known.map(str::to_owned),
            ..GetOptions::default()
        };
        options.extensions.insert(Arc::clone(&ask));
        self.requests.fetch_add(1, Ordering::Relaxed);
        let unasked = runtime.block_on(self.store.get_opts(&self.path, options));
        let outcome = ask
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let answer = outcome.unwrap_or_else(|| {
            let why = unasked
                .err()
                .map_or_else(String::new, |error| harmless(&chain(&error)));
            Err(Failure {
                status: None,
                problem: Problem::Settings(format!("the request can't be signed: {why}")),
                retry_after: None,
            })
        });
        if let Ok(Answer::Part { bytes, .. } | Answer::Whole { bytes, .. }) = &answer {
            self.received_bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        answer
    }

    /// What the object is now, asked without conditions if the server did not say; for the message.
    fn now(&self, runtime: &Runtime, marks: Marks) -> String {
        if marks.etag.is_some() {
            return describe(&marks, None);
        }
        match self.ask(runtime, &(0..1), None, None) {
            Ok(Answer::Part {
                marks, file_bytes, ..
            }) => describe(&marks, Some(file_bytes)),
            _ => describe(&marks, None),
        }
    }

    fn unasked(&self, range: &Range<u64>, attempts: u32) -> RemoteError {
        let what = "it says that nothing changed, which was not asked".to_owned();
        self.error(range, attempts, Some(304), Problem::BadAnswer(what))
    }

    fn changed(
        &self,
        range: &Range<u64>,
        attempts: u32,
        status: u16,
        was: String,
        now: String,
    ) -> RemoteError {
        self.error(range, attempts, Some(status), Problem::Changed { was, now })
    }

    pub(crate) fn error(
        &self,
        range: &Range<u64>,
        attempts: u32,
        status: Option<u16>,
        problem: Problem,
    ) -> RemoteError {
        RemoteError {
            url: self.place.shown.clone(),
            range: (range.start, range.end),
            attempts,
            status,
            problem,
        }
    }
}

/// A failure that is still to be believed: for a while, or always if the object is another one now.
fn in_force((error, since): &(RemoteError, Instant)) -> Option<RemoteError> {
    (is_changed(error) || since.elapsed() < REST).then(|| error.clone())
}

fn is_changed(error: &RemoteError) -> bool {
    matches!(error.problem, Problem::Changed { .. })
}

/// Whether an answer that was cut short is progress all the same: more than a few of the bytes that were asked for.
fn brings_much(bytes: &[u8], range: &Range<u64>) -> bool {
    let wanted = range.end.saturating_sub(range.start);
    bytes.len() as u64 >= PROGRESS_BYTES.min(wanted / 8)
}

/// A builder with settings by the names they have in the environment, its transport and no retries of its own:
/// attempts are counted and bounded here.
macro_rules! build {
    ($builder:expr, $key:ty, $settings:expr, $transport:expr, $url:expr) => {{
        let mut builder = $builder;
        for (name, value) in $settings {
            if let Ok(key) = name.to_ascii_lowercase().parse::<$key>() {
                builder = builder.with_config(key, value);
            }
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 0,
            retry_timeout: Duration::from_secs(60),
        };
        let builder = builder.with_url($url).with_http_connector($transport);
        Arc::new(builder.with_retry(retry).build()?)
    }};
}

/// The store an object lies in, with credentials from settings and the environment, and its path there.
fn store_of(
    place: &Place,
    transport: &Transport,
    settings: &BTreeMap<String, String>,
) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
    let transport = transport.clone();
    let url = place.url.as_str();
    let path = || Path::from_url_path(place.url.path());
    Ok(match place.kind {
        // The URL is whole, with its query and its own way to write the path.
        Kind::Http => (
            build!(
                HttpBuilder::new(),
                ClientConfigKey,
                settings,
                transport,
                url
            ),
            Path::default(),
        ),
        Kind::S3 => {
            let builder = AmazonS3Builder::from_env();
            let store = build!(builder, AmazonS3ConfigKey, settings, transport, url);
            (store, path()?)
        }
        Kind::Gcs => {
            let builder = GoogleCloudStorageBuilder::from_env();
            let store = build!(builder, GoogleConfigKey, settings, transport, url);
            (store, path()?)
        }
        Kind::Azure => {
            let builder = MicrosoftAzureBuilder::from_env();
            let store = build!(builder, AzureConfigKey, settings, transport, url);
            (store, path()?)
        }
    })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(etag: Option<&str>, date: Option<&str>, file_bytes: u64) -> Pin {
        let marks = Marks {
            etag: etag.map(str::to_owned),
            last_modified: date.map(str::to_owned),
        };
        Pin { marks, file_bytes }
    }

    #[test]
    fn the_same_content_is_told_by_its_marks() {
        use Agreement::{Other, Same, Unknown};
        let (strong, weak) = (Some("\"a\""), Some("W/\"a\""));
        #[track_caller]
        fn check(was: &Pin, now: &Pin, expected: Agreement) {
            assert_eq!(was.compare(now), expected, "{now:?} after {was:?}");
        }
        let was = pin(strong, Some("Mon"), 10);
        check(&was, &was, Same);
        // A mirror's date; a mark that is left out, where another is there.
        check(&was, &pin(strong, Some("Tue"), 10), Same);
        check(&was, &pin(strong, None, 10), Same);
        check(&was, &pin(None, Some("Mon"), 10), Same);
        check(&was, &pin(Some("\"b\""), Some("Mon"), 10), Other);
        check(&was, &pin(None, Some("Tue"), 10), Other);
        check(&was, &pin(strong, Some("Mon"), 11), Other);
        // A size is not enough where there were marks.
        check(&was, &pin(None, None, 10), Unknown);
        check(&was, &pin(None, None, 11), Other);
        check(&pin(strong, None, 10), &pin(None, Some("Mon"), 10), Unknown);
        check(&pin(None, Some("Mon"), 10), &pin(strong, None, 10), Unknown);
        check(
            &pin(None, Some("Mon"), 10),
            &pin(strong, Some("Mon"), 10),
            Same,
        );
        check(&pin(None, None, 10), &pin(strong, Some("Mon"), 10), Same);
        // A weak ETag promises the same meaning, not the same bytes: a date may say more.
        check(
            &pin(weak, Some("Mon"), 10),
            &pin(weak, Some("Mon"), 10),
            Same,
        );
        check(
            &pin(weak, Some("Mon"), 10),
            &pin(weak, Some("Tue"), 10),
            Other,
        );
        check(&pin(weak, None, 10), &pin(weak, Some("Tue"), 10), Same);
    }

    #[test]
    fn only_strong_etags_are_conditions() {
        assert_eq!(pin(Some("\"a\""), None, 1).strong_etag(), Some("\"a\""));
        for weak in ["W/\"a\"", "\"\"", "a", ""] {
            assert_eq!(pin(Some(weak), None, 1).strong_etag(), None, "{weak}");
        }
    }
}
