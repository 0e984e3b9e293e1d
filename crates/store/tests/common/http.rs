//! A web server for tests: threads on a socket, ranges, conditions, and any fault a test wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as they came.
    pub(crate) target: String,
    /// Names in small letters.
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// First and last byte that are asked for.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What goes back.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// After so many bytes of the body, the connection ends.
    pub(crate) cut: Option<usize>,
    /// How long nothing happens before.
    pub(crate) delay: Duration,
    /// The body comes byte by byte, with so much time between them.
    pub(crate) trickle: Option<Duration>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
            delay: Duration::ZERO,
            trickle: None,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Reply {
        self.headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Reply {
        self.body = body.to_vec();
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Reply {
        self.cut = Some(after);
        self
    }

    pub(crate) fn trickle(mut self, between: Duration) -> Reply {
        self.trickle = Some(between);
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Reply {
        self.delay = delay;
        self
    }
}

/// A file, as a good server gives it.
pub(crate) fn serve(request: &Request, bytes: &[u8], etag: &str) -> Reply {
    if request.header("if-match").is_some_and(|tag| tag != etag) {
        return Reply::new(412).with("ETag", etag);
    }
    if request.header("if-none-match") == Some(etag) {
        return Reply::new(304).with("ETag", etag);
    }
    let size = bytes.len();
    match request.range() {
        Some((first, _)) if first >= size => {
            Reply::new(416).with("Content-Range", &format!("bytes */{size}"))
        }
        Some((first, last)) => {
            let last = last.min(size - 1);
            Reply::new(206)
                .with("Content-Range", &format!("bytes {first}-{last}/{size}"))
                .with("ETag", etag)
                .body(&bytes[first..=last])
        }
        None => Reply::new(200).with("ETag", etag).body(bytes),
    }
}

type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<(Request, Reply)>>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    /// `handler` answers each request; it is told how many there were before.
    pub(crate) fn start(
        handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Server {
            address: listener.local_addr().expect("an address"),
            seen: Arc::default(),
            ended: Arc::default(),
        };
        let (seen, ended) = (Arc::clone(&server.seen), Arc::clone(&server.ended));
        let handler: Arc<Handler> = Arc::new(handler);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                thread::spawn(move || converse(stream, &seen, &*handler));
            }
        });
        server
    }

    /// One good file under every path.
    pub(crate) fn of_file(bytes: Vec<u8>) -> Server {
        Server::start(move |request, _| serve(request, &bytes, "\"one\""))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(request, _)| request.clone()).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Bytes of all bodies that went out.
    pub(crate) fn sent_bytes(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .map(|(_, reply)| reply.cut.unwrap_or(reply.body.len()))
            .sum()
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn converse(stream: TcpStream, seen: &Mutex<Vec<(Request, Reply)>>, handler: &Handler) {
    let _ = stream.set_nodelay(true);
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    while let Some(request) = receive(&mut reader) {
        let count = seen.lock().unwrap().len();
        let reply = handler(&request, count);
        seen.lock().unwrap().push((request, reply.clone()));
        thread::sleep(reply.delay);
        if send(&mut writer, &reply).is_none() {
            let _ = writer.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn receive(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    (reader.read_line(&mut line).ok()? > 0).then_some(())?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Some(Request {
                method,
                target,
                headers,
            });
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// `None` if the connection is to end.
fn send(writer: &mut TcpStream, reply: &Reply) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Some reason\r\n", reply.status);
    let named = |name: &str| {
        reply
            .headers
            .iter()
            .any(|(known, _)| known.eq_ignore_ascii_case(name))
    };
    if !named("Content-Length") && reply.status != 304 {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    writer.write_all(head.as_bytes()).ok()?;
    if let Some(between) = reply.trickle {
        for byte in &reply.body {
            writer.write_all(&[*byte]).ok()?;
            thread::sleep(between);
        }
        return Some(());
    }
    match reply.cut {
        Some(after) => {
            let _ = writer.write_all(&reply.body[..after]);
            None
        }
        None => writer.write_all(&reply.body).ok(),
    }
}
