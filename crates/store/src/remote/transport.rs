//! HTTP itself: one request, its redirects, and what the answer really is.
//!
//! `object_store` writes and signs the requests and is handed this transport. What it would make of the answer is not
//! used: a request carries an [`Ask`], and its answer is judged here, where all of it can be seen.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use ureq::http::{HeaderMap, Request, Response, StatusCode, header};
use url::Url;

use super::error::{Problem, harmless};

/// Redirects that are followed for one request.
const REDIRECTS_MAX: usize = 8;

/// Requests that are not ours ask for credentials; those that nobody answers should not be waited for.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);

/// As much of an error's body, or of a credential, as is read.
const SMALL_BODY_BYTES: u64 = 256 * 1024;

/// A body may take as long as this much a second would, and the timeout besides; at any moment of it.
const SLOWEST_BYTES_A_SECOND: u64 = 32 * 1024;

/// What is wanted of one request, and, after it, what came of it.
pub(crate) struct Ask {
    pub(crate) range: Range<u64>,
    /// `If-Unmodified-Since`, for servers without ETags.
    pub(crate) unmodified_since: Option<String>,
    /// A token for the first host.
    pub(crate) token: Option<String>,
    /// Whether redirects are followed: by web servers' rules, not by those of signed stores.
    pub(crate) follow: bool,
    /// The largest file that is read in full where ranges are not supported.
    pub(crate) whole_bytes_max: u64,
    pub(crate) outcome: Mutex<Option<Result<Answer, Failure>>>,
}

/// What distinguishes this content of an object from its earlier and later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
}

/// A server's answer, as far as it makes sense.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Bytes of the range, from its start. Fewer than were asked for if the file ends, or (with `cut`) if the connection did.
    Part {
        bytes: Vec<u8>,
        file_bytes: u64,
        marks: Marks,
        cut: Option<Failure>,
    },
    /// The whole file, from a server without ranges.
    Whole { bytes: Vec<u8>, marks: Marks },
    /// It is still what was known by the ETag that was sent.
    Unchanged,
    /// It is not any more what was known by the marks that were sent; what it is now, if the server says so.
    Replaced(Marks),
}

/// Why there is no sensible answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: Option<u16>,
    pub(crate) problem: Problem,
    /// How long the server asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    fn new(status: Option<u16>, problem: Problem) -> Failure {
        Failure {
            status,
            problem,
            retry_after: None,
        }
    }
}

/// Connections, kept open and shared by all requests of a handle.
#[derive(Clone)]
pub(crate) struct Transport {
    agent: ureq::Agent,
    timeout: Duration,
    /// For stores that sign requests: credentials don't go over open connections unless the environment allows it.
    https_only: bool,
    /// Where redirects led, so that later requests need not ask again.
    moved: Arc<Mutex<HashMap<String, Url>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let http_allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        Ok(HttpClient::new(Transport {
            https_only: http_allowed.as_deref() != Some("true"),
            ..self.clone()
        }))
    }
}

#[async_trait]
impl HttpService for Transport {
    /// Blocks: it is called on threads that are there for it.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        match request.extensions().get::<Arc<Ask>>().cloned() {
            Some(ask) => {
                let answer = self.answer(&request, &ask);
                *ask.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                // `object_store` need not know what came: an answer that ends its work at once.
                let mut done = Response::new(String::new().into());
                *done.status_mut() = StatusCode::NOT_FOUND;
                Ok(done)
            }
            None => self.small(request),
        }
    }
}

impl Transport {
    /// `timeout` is for each step: to connect, to get the head of an answer, to get more of its body.
    pub(crate) fn new(timeout: Duration, connections: usize) -> Transport {
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::PlatformVerifier)
            .build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("safelight/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .max_idle_connections(2 * connections)
            .max_idle_connections_per_host(connections)
            .tls_config(tls)
            .build();
        Transport {
            agent: config.new_agent(),
            timeout,
            https_only: true,
            moved: Arc::default(),
        }
    }

    /// Any other request of `object_store`: for credentials.
    fn small(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |kind, error: ureq::Error| HttpError::new(kind, error);
        let (parts, body) = request.into_parts();
        let body = body.as_bytes().map(|bytes| bytes.to_vec());
        let request = Request::from_parts(parts, body.unwrap_or_default());
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(Some(CREDENTIALS_TIMEOUT))
            .allow_non_standard_methods(true)
            .build();
        let response = self
            .agent
            .run(request)
            .map_err(|error| failed(HttpErrorKind::Connect, error))?;
        let (parts, mut body) = response.into_parts();
        let bytes = body
            .with_config()
            .limit(SMALL_BODY_BYTES)
            .read_to_vec()
            .map_err(|error| failed(HttpErrorKind::Decode, error))?;
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }

    /// Sends the request, follows redirects, and judges the answer.
    fn answer(&self, request: &HttpRequest, ask: &Ask) -> Result<Answer, Failure> {
        let first = request.uri().to_string();
        if self.https_only && !ask.follow && request.uri().scheme_str() != Some("https") {
            let what = "the store's endpoint has http:// and not https://, which must be allowed by AWS_ALLOW_HTTP, \
                        GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP=true";
            return Err(Failure::new(None, Problem::Settings(what.to_owned())));
        }
        let known = lock(&self.moved).get(&first).cloned();
        if let Some(moved) = known {
            match self.follow(request, ask, moved.clone()) {
                // Signed redirects end after a while; the first host gives a new one.
                Err(failure) if !is_passing(&failure) => {
                    lock(&self.moved).remove(&first);
                }
                answer => return answer,
            }
        }
        let url = Url::parse(&first)
            .map_err(|error| Failure::new(None, Problem::Redirect(error.to_string())))?;
        self.follow(request, ask, url)
    }

    fn follow(&self, request: &HttpRequest, ask: &Ask, mut url: Url) -> Result<Answer, Failure> {
        let first = request.uri().to_string();
        let home = Url::parse(&first).ok().map(|url| url.origin());
        for _ in 0..=REDIRECTS_MAX {
            let at_home = home.as_ref().is_some_and(|home| *home == url.origin());
            let response = self.send(request, ask, &url, at_home)?;
            if !ask.follow || !is_redirect(response.status()) {
                if url.as_str() != first && response.status().is_success() {
                    lock(&self.moved).insert(first, url);
                }
                return judge(response, ask, self.timeout);
            }
            url = next(&url, &response)?;
        }
        let problem = format!("more than {REDIRECTS_MAX} redirects: the server leads in a circle");
        Err(Failure::new(None, Problem::Redirect(problem)))
    }

    /// One request over the wire.
    fn send(
        &self,
        request: &HttpRequest,
        ask: &Ask,
        url: &Url,
        at_home: bool,
    ) -> Result<Response<ureq::Body>, Failure> {
        let network = |what: String| Failure::new(None, Problem::Network(what));
        let mut own = Request::get(url.as_str());
        for (name, value) in request.headers() {
            let secret = name == header::AUTHORIZATION || name == header::COOKIE;
            // `ureq` names the host by itself, and a redirect has another one.
            if name != header::HOST && (at_home || !secret) {
                own = own.header(name, value);
            }
        }
        if let Some(date) = &ask.unmodified_since {
            own = own.header(header::IF_UNMODIFIED_SINCE, date);
        }
        if let (Some(token), true) = (&ask.token, at_home) {
            own = own.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let own = own.body(()).map_err(|error| network(error.to_string()))?;
        self.agent
            .run(own)
            .map_err(|error| network(harmless(&error.to_string())))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_passing(failure: &Failure) -> bool {
    matches!(failure.problem, Problem::Busy(_) | Problem::Network(_))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads.
fn next(url: &Url, response: &Response<ureq::Body>) -> Result<Url, Failure> {
    let status = Some(response.status().as_u16());
    let refused = |what: String| Failure::new(status, Problem::Redirect(what));
    let Some(target) = text(response.headers(), "location") else {
        return Err(refused("a redirect that doesn't say where to".to_owned()));
    };
    let target = url
        .join(&target)
        .map_err(|error| refused(format!("a redirect to something that is no URL: {error}")))?;
    let shown = crate::location::redacted(target.as_str());
    match (url.scheme(), target.scheme()) {
        ("https", "https") | ("http", "http" | "https") => Ok(target),
        _ => Err(refused(format!(
            "a redirect from {} to {shown}, which is not followed because it would be less safe",
            url.scheme()
        ))),
    }
}

/// What an answer is. Its body is read no further than it may be.
fn judge(
    mut response: Response<ureq::Body>,
    ask: &Ask,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let status = response.status();
    let code = Some(status.as_u16());
    let headers = response.headers().clone();
    let marks = Marks {
        etag: text(&headers, "etag"),
        last_modified: text(&headers, "last-modified"),
    };
    match status.as_u16() {
        200 | 206 => {
            check_encoding(&headers).map_err(|problem| Failure::new(code, problem))?;
            let body = &mut Timely::new(response.body_mut(), timeout);
            if status == StatusCode::OK {
                whole(body, &headers, marks, ask).map_err(|problem| Failure::new(code, problem))
            } else {
                part(body, &headers, marks, ask).map_err(|problem| Failure::new(code, problem))
            }
        }
        304 => Ok(Answer::Unchanged),
        412 => Ok(Answer::Replaced(marks)),
        416 => match text(&headers, "content-range")
            .as_deref()
            .and_then(ContentRange::parse)
        {
            // An empty file has no range at all; and one that is shorter than it was is another one.
            Some(ContentRange {
                part: None,
                file_bytes: Some(file_bytes),
            }) if file_bytes <= ask.range.start => Ok(Answer::Part {
                bytes: Vec::new(),
                file_bytes,
                marks,
                cut: None,
            }),
            _ => Err(Failure::new(
                code,
                Problem::BadAnswer("it says that this range is not there".to_owned()),
            )),
        },
        _ => Err(refusal(status, &headers, response.body_mut())),
    }
}

/// What a status other than success means.
fn refusal(status: StatusCode, headers: &HeaderMap, body: &mut ureq::Body) -> Failure {
    let said = error_code(body);
    let reason = status.canonical_reason().unwrap_or("").to_owned();
    let what = said.unwrap_or(reason);
    let problem = match status.as_u16() {
        404 | 410 => Problem::NotFound,
        401 | 403 => Problem::Refused(what),
        408 | 429 | 500..=599 => Problem::Busy(what),
        _ => Problem::BadAnswer(format!("an answer that is not understood ({what})")),
    };
    let retry_after = text(headers, "retry-after")
        .and_then(|text| text.trim().parse().ok())
        .map(Duration::from_secs);
    Failure {
        status: Some(status.as_u16()),
        problem,
        retry_after,
    }
}

/// The `<Code>` of S3's, GCS's and Azure's error documents. The rest may hold what should not be shown.
fn error_code(body: &mut ureq::Body) -> Option<String> {
    let mut text = Vec::new();
    let mut reader = body.as_reader().take(4096);
    reader.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

/// Positions in compressed bytes are not positions in the file. `aws-chunked` is what some uploads leave behind.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match text(headers, "content-encoding") {
        Some(encoding)
            if !["", "identity", "aws-chunked"]
                .contains(&encoding.trim().to_ascii_lowercase().as_str()) =>
        {
            Err(Problem::Encoded(harmless(&encoding)))
        }
        _ => Ok(()),
    }
}

/// An answer with the range.
fn part(
    body: &mut impl Read,
    headers: &HeaderMap,
    marks: Marks,
    ask: &Ask,
) -> Result<Answer, Problem> {
    let bad = |what: String| Problem::BadAnswer(what);
    let said = text(headers, "content-range")
        .ok_or_else(|| bad("a part of the file, but not which (no Content-Range)".to_owned()))?;
    let parsed = ContentRange::parse(&said);
    let Some(ContentRange {
        part: Some((first, last)),
        file_bytes: Some(file_bytes),
    }) = parsed
    else {
        let said = harmless(&said);
        return Err(bad(format!(
            "Content-Range is `{said}`, where `bytes FIRST-LAST/SIZE` is expected"
        )));
    };
    let wanted_end = ask.range.end.min(file_bytes);
    if first != ask.range.start || last >= wanted_end {
        let (start, end) = (ask.range.start, wanted_end);
        return Err(bad(format!(
            "bytes {first}-{last} of {file_bytes} came where {start}-{} were asked for",
            end.saturating_sub(1)
        )));
    }
    let byte_count = last + 1 - first;
    let (bytes, cut) = read_body(body, byte_count)?;
    Ok(Answer::Part {
        bytes,
        file_bytes,
        marks,
        cut,
    })
}

/// A body that has to keep coming: a server that sends a byte now and then is not waited for as long as it likes. Single
/// reads have the agent's timeout.
struct Timely<R> {
    body: R,
    timeout: Duration,
    began: Instant,
    byte_count: u64,
}

impl<'b> Timely<ureq::BodyReader<'b>> {
    fn new(body: &'b mut ureq::Body, timeout: Duration) -> Self {
        Timely {
            body: body.as_reader(),
            timeout,
            began: Instant::now(),
            byte_count: 0,
        }
    }
}

impl<R: Read> Read for Timely<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        self.byte_count += count as u64;
        let (spent, allowed) = (
            self.began.elapsed(),
            self.byte_count / SLOWEST_BYTES_A_SECOND,
        );
        if count > 0 && spent > self.timeout + Duration::from_secs(allowed) {
            let what = format!(
                "{} bytes in {} s are too slow",
                self.byte_count,
                spent.as_secs()
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        Ok(count)
    }
}

/// Up to `byte_count` bytes of a body (which was checked to be no more than was asked for), and why there are fewer.
fn read_body(body: &mut impl Read, byte_count: u64) -> Result<(Vec<u8>, Option<Failure>), Problem> {
    let mut bytes = Vec::new();
    let room = usize::try_from(byte_count)
        .ok()
        .filter(|count| bytes.try_reserve_exact(*count).is_ok());
    if room.is_none() {
        let what = format!("{byte_count} bytes of memory are not there");
        return Err(Problem::BadAnswer(what));
    }
    let error = body
        .take(byte_count)
        .read_to_end(&mut bytes)
        .err()
        .map(|error| harmless(&error.to_string()));
    let got = bytes.len() as u64;
    let cut = (got < byte_count).then(|| {
        let why = error.unwrap_or_else(|| "the connection ended".to_owned());
        let what = format!("{got} of {byte_count} bytes came: {why}");
        Failure::new(None, Problem::Network(what))
    });
    Ok((bytes, cut))
}

/// An answer with the whole file: there are no ranges here.
fn whole(
    body: &mut impl Read,
    headers: &HeaderMap,
    marks: Marks,
    ask: &Ask,
) -> Result<Answer, Problem> {
    let limit_bytes = ask.whole_bytes_max;
    let said: Option<u64> = text(headers, "content-length").and_then(|text| text.parse().ok());
    let too_long = Problem::NoRanges {
        file_bytes: said,
        limit_bytes,
    };
    if said.is_some_and(|said| said > limit_bytes) {
        return Err(too_long);
    }
    let mut bytes = Vec::new();
    let read = body.take(limit_bytes + 1).read_to_end(&mut bytes);
    if let Err(error) = read {
        return Err(Problem::Network(harmless(&error.to_string())));
    }
    if bytes.len() as u64 > limit_bytes {
        return Err(too_long);
    }
    match said {
        Some(said) if said != bytes.len() as u64 => Err(Problem::Network(format!(
            "{} of {said} bytes came",
            bytes.len()
        ))),
        _ => Ok(Answer::Whole { bytes, marks }),
    }
}

/// `bytes FIRST-LAST/SIZE`, with `*` for what is not there or not known.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    part: Option<(u64, u64)>,
    file_bytes: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<ContentRange> {
        let rest = text
            .trim()
            .strip_prefix("bytes")?
            .trim_start_matches([' ', '=']);
        let (part, size) = rest.split_once('/')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let part = match part.trim() {
            "*" => None,
            part => {
                let (first, last) = part.split_once('-')?;
                let (first, last) = (number(first.trim())?, number(last.trim())?);
                (first <= last && last < u64::MAX).then_some(())?;
                Some((first, last))
            }
        };
        let file_bytes = match size.trim() {
            "*" => None,
            size => Some(number(size)?),
        };
        if let (Some((_, last)), Some(size)) = (part, file_bytes) {
            (last < size).then_some(())?;
        }
        Some(ContentRange { part, file_bytes })
    }
}

/// A header as text.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |part, file_bytes| Some(ContentRange { part, file_bytes });
        for (text, expected) in [
            ("bytes 0-9/10", range(Some((0, 9)), Some(10))),
            ("bytes 5-5/*", range(Some((5, 5)), None)),
            ("bytes */0", range(None, Some(0))),
            ("bytes=1-2/3", range(Some((1, 2)), Some(3))),
            ("bytes 0-10/10", None),
            ("bytes 3-2/10", None),
            ("bytes +1-2/10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("bytes 0-99999999999999999999/*", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), expected, "{text}");
        }
    }
}
