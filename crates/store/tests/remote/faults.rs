//! Servers that fail, lie or dawdle.

use super::*;

/// A good file, but for the answers that `fault` makes of the good ones; it is told their number.
fn server(fault: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static) -> (Server, Vec<u8>) {
    server_of(model(4, 300_000), fault)
}

fn server_of(
    bytes: Vec<u8>,
    fault: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static,
) -> (Server, Vec<u8>) {
    let file = bytes.clone();
    let server =
        Server::start(move |request, count| fault(serve(request, &file, "\"one\""), count));
    (server, bytes)
}

#[track_caller]
fn reads_all_the_same(server: &Server, bytes: &[u8]) {
    let file = open_file(&server.url("/m"), &options()).unwrap();
    assert!(read_all(&file).unwrap() == bytes, "other bytes");
}

#[test]
fn a_busy_server_is_asked_again() {
    let (server, bytes) = server(|reply, count| match count {
        0 | 2 => Reply::new(503),
        4 => Reply::new(429).with("Retry-After", "0"),
        5 => Reply::new(500),
        _ => reply,
    });
    reads_all_the_same(&server, &bytes);
}

#[test]
fn a_server_that_stays_busy_is_named_with_its_attempts() {
    let (server, _) = server(|_, _| Reply::new(503).body(b"<Code>SlowDown</Code>"));
    let (error, text) = fails(&server.url("/m"));
    assert_eq!((error.attempts, error.status), (4, Some(503)));
    assert_eq!(server.count(), 4);
    for said in [
        "HTTP 503",
        "4 attempts",
        "SlowDown",
        "later",
        "bytes 0-",
        "/m",
    ] {
        assert!(text.contains(said), "{said} in: {text}");
    }
}

#[test]
fn a_pause_that_is_too_long_is_not_waited_for() {
    let (server, _) = server(|_, _| Reply::new(503).with("Retry-After", "3600"));
    assert_eq!(fails(&server.url("/m")).0.attempts, 1);
}

#[test]
fn cut_bodies_are_continued_where_they_ended() {
    let (server, bytes) = server(|reply, count| match count % 2 {
        0 => {
            let half = reply.body.len() / 2;
            reply.cut(half)
        }
        _ => reply,
    });
    reads_all_the_same(&server, &bytes);
    let sent = server.sent_bytes();
    assert!(
        sent <= bytes.len() + 4 * 64 * 1024,
        "{sent} for {}",
        bytes.len()
    );
}

#[test]
fn a_server_that_cuts_everything_is_given_up() {
    let (server, _) = server(|reply, _| reply.cut(0));
    let (error, text) = fails(&server.url("/m"));
    assert!(matches!(error.problem, Problem::Network(_)), "{text}");
    let (server, _) = self::server(|reply, _| reply.cut(1));
    let (error, text) = fails(&server.url("/m"));
    assert_eq!(error.attempts, 4, "a byte each time is no progress: {text}");
}

#[test]
fn a_server_that_dies_midway_is_given_up_once() {
    // 2 MB, of which some come; then nothing, for whatever is asked.
    let (server, _) = server_of(model(4, 500_000), |reply, count| match count {
        0..6 => reply,
        _ => Reply::new(503),
    });
    let checkpoint = open_at(&server.url("/m")).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    let errors: Vec<String> = names
        .iter()
        .filter_map(|name| Some(checkpoint.read_bytes(name).err()?.to_string()))
        .collect();
    assert!(errors.len() > 1, "{errors:?}");
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    assert!(
        errors[0].contains("HTTP 503 after 4 attempts"),
        "{errors:?}"
    );
    // As many requests as were under way together, with their attempts; not those of every part.
    let most = 6 + 4 * 4;
    assert!(server.count() <= most, "{} requests", server.count());
}

#[test]
fn a_trickle_is_not_waited_for() {
    let bytes = model(1, 100_000);
    let server = Server::start(move |request, count| {
        let reply = serve(request, &bytes, "\"one\"");
        match count {
            0 => reply,
            _ => reply.trickle(Duration::from_millis(100)),
        }
    });
    let fast = RemoteOptions {
        timeout: Duration::from_millis(500),
        attempts_max: 2,
        ..options()
    };
    let file = open_file(&server.url("/m"), &fast).unwrap();
    let began = std::time::Instant::now();
    let error = read_all(&file).unwrap_err().to_string();
    assert!(
        error.contains("too slow") && error.contains("2 attempts"),
        "{error}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_slow_server_is_waited_for_only_so_long() {
    let (server, bytes) = server(|reply, count| match count {
        1 => reply.delay(Duration::from_millis(600)),
        _ => reply,
    });
    let fast = RemoteOptions {
        timeout: Duration::from_millis(200),
        ..options()
    };
    let file = open_file(&server.url("/m"), &fast).unwrap();
    assert!(read_all(&file).unwrap() == bytes);
    let (silent, _) = self::server(|reply, _| reply.delay(Duration::from_millis(700)));
    let twice = RemoteOptions {
        attempts_max: 2,
        ..fast
    };
    let error = open_file(&silent.url("/m"), &twice).unwrap_err();
    let (error, text) = remote_error(&error);
    assert!(matches!(error.problem, Problem::Network(_)), "{text}");
    assert_eq!((error.attempts, error.status), (2, None), "{text}");
}

#[test]
fn no_server_at_all() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let (error, text) = fails(&format!("http://127.0.0.1:{port}/m"));
    assert!(matches!(error.problem, Problem::Network(_)), "{text}");
    assert!(text.contains("check the URL's host"), "{text}");
}

#[test]
fn a_server_without_ranges_gives_small_files_in_full() {
    let whole = |bytes: &[u8]| Reply::new(200).with("ETag", "\"one\"").body(bytes);
    let bytes = model(4, 300_000);
    let file = bytes.clone();
    let server = Server::start(move |_, _| whole(&file));
    reads_all_the_same(&server, &bytes);
    assert_eq!(server.count(), 1);

    let less = RemoteOptions {
        whole_file_bytes_max: 1_000_000,
        ..options()
    };
    let error = open_file(&server.url("/m"), &less).unwrap_err();
    let (error, text) = remote_error(&error);
    let expected = Problem::NoRanges {
        file_bytes: Some(bytes.len() as u64),
        limit_bytes: 1_000_000,
    };
    assert_eq!(error.problem, expected, "{text}");
    assert!(text.contains("download it first"), "{text}");

    // A length that is not said, or not true.
    let server = Server::start(move |_, _| {
        whole(&bytes)
            .with("Content-Length", "99999999999999")
            .cut(10)
    });
    let error = open_file(&server.url("/m"), &less).unwrap_err();
    assert!(matches!(
        remote_error(&error).0.problem,
        Problem::NoRanges { .. }
    ));
}

#[test]
fn other_ranges_than_were_asked_for_are_refused() {
    for said in [
        "bytes 1-65536/1200400",
        "bytes 0-65535/*",
        "bytes 0-9999999999/10000000000",
        "bytes 5-4/10",
        "nonsense",
    ] {
        let (server, _) = server(move |reply, _| reply.with("Content-Range", said));
        let (error, text) = fails(&server.url("/m"));
        assert!(
            matches!(error.problem, Problem::BadAnswer(_)),
            "{said}: {text}"
        );
        assert_eq!(error.attempts, 1);
    }
    let (server, _) = server(|reply, _| reply.without("Content-Range"));
    assert!(fails(&server.url("/m")).1.contains("Content-Range"));
}

#[test]
fn less_than_was_asked_for_is_continued() {
    let bytes = model(4, 300_000);
    let file = bytes.clone();
    let server = Server::start(move |request, _| {
        let mut less = request.clone();
        let (first, last) = request.range().unwrap();
        let range = format!("bytes={first}-{}", last.min(first + 9_999));
        less.headers.retain(|(name, _)| name != "range");
        less.headers.push(("range".to_owned(), range));
        serve(&less, &file, "\"one\"")
    });
    reads_all_the_same(&server, &bytes);
}

#[test]
fn compressed_answers_are_refused_also_if_they_lie() {
    let (server, _) = server(|reply, _| reply.with("Content-Encoding", "gzip"));
    let (error, text) = fails(&server.url("/m"));
    assert_eq!(error.problem, Problem::Encoded("gzip".to_owned()), "{text}");
    let (server, bytes) = self::server(|reply, _| reply.with("Content-Encoding", "identity"));
    reads_all_the_same(&server, &bytes);
}

#[test]
fn a_header_that_claims_to_be_huge_costs_one_request() {
    for length in [1u64 << 40, u64::MAX, 100_000_001] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{\"a\":");
        bytes.resize(200_000, b' ');
        let server = Server::of_file(bytes);
        let error = open_at(&server.url("/m")).unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        assert_eq!(server.count(), 1);
    }
    // A size of the file that nobody could have.
    let (server, _) = server(|reply, _| {
        let body = &[&(1u64 << 26).to_le_bytes()[..], b"{", &[b' '; 65_527]].concat();
        let body = &body[..reply.body.len().min(65_536)];
        let range = format!("bytes 0-{}/9000000000000000000", body.len() - 1);
        reply.body(body).with("Content-Range", &range)
    });
    assert!(open_at(&server.url("/m")).is_err());
}

#[test]
fn what_is_not_there_and_empty_files() {
    let server = Server::start(|request, _| match request.target.as_str() {
        "/empty" => serve(request, b"", "\"e\""),
        _ => Reply::new(404),
    });
    let (error, text) = fails(&server.url("/m.safetensors"));
    assert_eq!(
        (error.problem, error.attempts),
        (Problem::NotFound, 1),
        "{text}"
    );
    let error = open_at(&server.url("/empty")).unwrap_err();
    assert!(matches!(error, StoreError::Format { .. }), "{error}");
}
