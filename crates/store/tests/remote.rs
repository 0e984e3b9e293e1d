//! Files behind URLs, read from a real server on this machine, with every fault that one has.
#![cfg(feature = "remote")]

mod common;

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::http::{Reply, Server, serve};
use common::{Folder, file_of};
use safelight_format::{Dtype, TensorView, parse_index};
use safelight_store::remote::{
    CacheChoice, Problem, RemoteError, RemoteFile, RemoteOptions, open, open_file,
};
use safelight_store::{Checkpoint, HashOptions, OpenOptions, ReadAt as _, StoreError, location};

/// Short waits and small parts, so that tests are fast and see many requests.
fn options() -> RemoteOptions {
    RemoteOptions {
        timeout: Duration::from_millis(2000),
        part_bytes: 64 * 1024,
        parallel_requests: 4,
        ..RemoteOptions::default()
    }
}

fn some_bytes(count: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A file with tensors of so many bytes each, named `t0`, `t1`, ….
fn model(count: usize, tensor_bytes: usize) -> Vec<u8> {
    let bytes = some_bytes(count * tensor_bytes);
    let names: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    let shape = [tensor_bytes as u64];
    let tensors: Vec<TensorView<'_>> = names
        .iter()
        .zip(bytes.chunks(tensor_bytes.max(1)))
        .map(|(name, bytes)| TensorView {
            name,
            dtype: Dtype::U8,
            shape: &shape,
            bytes,
        })
        .collect();
    file_of(&tensors, None)
}

fn open_at(url: &str) -> Result<Checkpoint, StoreError> {
    open(url, &OpenOptions::default(), &options())
}

/// What went wrong on the way, with the message.
fn remote_error(error: &StoreError) -> (RemoteError, String) {
    let StoreError::Io { error: inner, .. } = error else {
        panic!("{error}")
    };
    let remote = inner.get_ref().and_then(|inner| inner.downcast_ref());
    let remote: &RemoteError = remote.unwrap_or_else(|| panic!("{error}"));
    (remote.clone(), error.to_string())
}

#[track_caller]
fn fails(url: &str) -> (RemoteError, String) {
    remote_error(&open_at(url).expect_err("this should fail"))
}

fn read_all(file: &RemoteFile) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.byte_count()? as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += file.read_at(&mut bytes[done..], done as u64)?;
    }
    Ok(bytes)
}

mod requests {
    use super::*;

    #[test]
    fn a_header_of_3000_tensors_costs_two_requests_at_most() {
        let bytes = model(3000, 700);
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert!(header_bytes > 64 * 1024, "longer than the first request");
        let whole = RemoteOptions {
            part_bytes: RemoteOptions::default().part_bytes,
            ..options()
        };
        let server = Server::of_file(bytes);
        let checkpoint = open(
            &server.url("/model.safetensors"),
            &OpenOptions::default(),
            &whole,
        )
        .unwrap();
        assert_eq!(checkpoint.len(), 3000);
        assert!(server.count() <= 2, "{} requests", server.count());
        assert!(server.sent_bytes() <= header_bytes + 64 * 1024);
        // The next one like it: headers of this length are expected now.
        server.forget();
        open(
            &server.url("/model-2.safetensors"),
            &OpenOptions::default(),
            &whole,
        )
        .unwrap();
        assert!(server.count() <= 2, "{} requests", server.count());
    }

    #[test]
    fn tensors_move_what_they_need() {
        let bytes = model(40, 300_000);
        let server = Server::of_file(bytes.clone());
        let checkpoint = open_at(&server.url("/m.safetensors")).unwrap();
        server.forget();
        for name in ["t0", "t17", "t39"] {
            let read = checkpoint.read_bytes(name).unwrap();
            assert_eq!(read.len(), 300_000);
            let at = bytes.windows(64).position(|window| window == &read[..64]);
            assert_eq!(bytes[at.unwrap()..][..300_000], read[..], "{name}");
        }
        assert!(server.sent_bytes() <= 900_000, "{}", server.sent_bytes());
        // Parts of 64 KiB.
        assert!(server.count() <= 3 * 5, "{} requests", server.count());
    }

    #[test]
    fn slices_move_at_most_a_fifth_more() {
        let bytes = some_bytes(4_000_000);
        let tensor = TensorView {
            name: "t",
            dtype: Dtype::U8,
            shape: &[1000, 4000],
            bytes: &bytes,
        };
        let server = Server::of_file(file_of(&[tensor], None));
        let checkpoint = open_at(&server.url("/m")).unwrap();
        for (index, needed) in [
            ("100:600", 2_000_000),
            ("300:400, 100:3900", 380_000),
            ("500:620, 10:1010", 120_000),
            ("-1", 4000),
        ] {
            server.forget();
            let slice = checkpoint
                .read_slice("t", &parse_index(index).unwrap())
                .unwrap();
            assert!(!slice.elements.is_empty());
            let sent = server.sent_bytes();
            assert!(sent * 5 <= needed * 6, "{index}: {sent} for {needed}");
        }
    }

    #[test]
    fn announced_ranges_are_drawn_together_within_a_fifth() {
        let bytes = some_bytes(4_000_000);
        let server = Server::of_file(bytes.clone());
        let generous = RemoteOptions {
            over_read: 0.15,
            ..options()
        };
        let file = open_file(&server.url("/f"), &generous).unwrap();
        server.forget();
        // Rows of 4,000 bytes, 500 bytes apart: together; and some that lie far away.
        let near = (0..40u64).map(|row| (1_500_000 + row * 4_500, 1_504_000 + row * 4_500));
        let far = (0..3u64).map(|row| (2_000_000 + row * 500_000, 2_010_000 + row * 500_000));
        let ranges: Vec<(u64, u64)> = near.chain(far).collect();
        file.will_read(&ranges);
        let mut needed = 0;
        for &(start, end) in &ranges {
            let mut row = vec![0; (end - start) as usize];
            let mut done = 0;
            while done < row.len() {
                done += file.read_at(&mut row[done..], start + done as u64).unwrap();
            }
            assert_eq!(row, bytes[start as usize..end as usize]);
            needed += row.len();
        }
        assert!(
            server.sent_bytes() * 10 <= needed * 12,
            "{} for {needed}",
            server.sent_bytes()
        );
        assert!(
            server.count() <= 10,
            "{} requests for {}",
            server.count(),
            ranges.len()
        );
    }

    #[test]
    fn reading_on_without_announcement_needs_fewer_requests_and_little_more_bytes() {
        let bytes = some_bytes(3_000_000);
        let server = Server::of_file(bytes.clone());
        let file = open_file(&server.url("/f"), &options()).unwrap();
        server.forget();
        let mut at = 1_100_000usize;
        let mut piece = vec![0; 4096];
        while at < 2_100_000 {
            let count = file.read_at(&mut piece, at as u64).unwrap();
            assert_eq!(piece[..count], bytes[at..at + count]);
            at += count;
        }
        assert!(server.sent_bytes() <= 1_200_000, "{}", server.sent_bytes());
        assert!(
            server.count() <= 60,
            "{} requests for 245 reads",
            server.count()
        );
    }

    #[test]
    fn parts_are_fetched_at_the_same_time() {
        let running = AtomicUsize::new(0);
        let most = std::sync::Arc::new(AtomicUsize::new(0));
        let seen = std::sync::Arc::clone(&most);
        let bytes = model(1, 1_000_000);
        let server = Server::start(move |request, count| {
            if count > 0 {
                seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                running.fetch_sub(1, Ordering::SeqCst);
            }
            serve(request, &bytes, "\"one\"")
        });
        let checkpoint = open_at(&server.url("/m")).unwrap();
        checkpoint.read_bytes("t0").unwrap();
        let most = most.load(Ordering::SeqCst);
        assert!((2..=4).contains(&most), "{most} at the same time");
    }

    #[test]
    fn many_threads_read_one_handle() {
        let bytes = model(24, 200_000);
        let server = Server::of_file(bytes.clone());
        let file = Checkpoint::from_bytes("memory", bytes).unwrap();
        let checkpoint = open_at(&server.url("/m")).unwrap();
        std::thread::scope(|scope| {
            for start in 0..6 {
                let (file, checkpoint) = (&file, &checkpoint);
                scope.spawn(move || {
                    for number in (start..24).step_by(3) {
                        let name = format!("t{number}");
                        let same = checkpoint.read_bytes(&name).unwrap()
                            == file.read_bytes(&name).unwrap();
                        assert!(same, "{name}");
                    }
                });
            }
        });
    }

    #[test]
    fn a_foreign_runtime_is_no_obstacle() {
        let server = Server::of_file(model(3, 100_000));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let url = server.url("/m");
        let len = runtime.block_on(async move {
            let checkpoint = open_at(&url).unwrap();
            checkpoint.read_bytes("t2").unwrap().len()
        });
        assert_eq!(len, 100_000);
    }

    #[test]
    fn paths_and_queries_arrive_as_they_were_written() {
        let server = Server::of_file(model(1, 10));
        let target = "/a%20b/%2525%C3%A9/m+x.safetensors?X-Sig=a%2Fb%3D&id=1";
        open_at(&server.url(target)).unwrap();
        let first = &server.requests()[0];
        assert_eq!(first.target, target);
        assert_eq!(first.method, "GET");
        assert_eq!(first.header("accept-encoding"), Some("identity"));
        assert!(first.header("range").is_some());
    }

    #[test]
    fn users_and_tokens_are_sent_and_not_shown() {
        let server = Server::start(|_, _| Reply::new(403).body(b"<Code>AccessDenied</Code>"));
        let url = server
            .url("/o/r/m?sig=hush")
            .replace("http://", "http://me:hush@");
        let (error, text) = fails(&url);
        assert_eq!(error.problem, Problem::Refused("AccessDenied".to_owned()));
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("403") && text.contains("/o/r/m?…") && text.contains("credentials"));
        let sent = server.requests()[0]
            .header("authorization")
            .map(str::to_owned);
        assert_eq!(sent.as_deref(), Some("Basic bWU6aHVzaA=="));

        let settings = [
            ("HF_ENDPOINT", server.url("")),
            ("HF_TOKEN", "hf_hush".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        let remote = RemoteOptions {
            settings: settings.into(),
            ..options()
        };
        let error = open("hf://me/repo@v1/m", &OpenOptions::default(), &remote).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
        let request = server.requests().pop().unwrap();
        assert_eq!(request.target, "/me/repo/resolve/v1/m");
        assert_eq!(request.header("authorization"), Some("Bearer hf_hush"));
        assert!(!format!("{remote:?}").contains("hush"));
    }
}

mod faults {
    use super::*;

    /// A good file, but for the answers that `fault` makes of the good ones; it is told their number.
    fn server(fault: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static) -> (Server, Vec<u8>) {
        let bytes = model(4, 300_000);
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
        let begun = Instant::now();
        assert_eq!(fails(&server.url("/m")).0.attempts, 1);
        assert!(begun.elapsed() < Duration::from_secs(10));
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
        assert!(error.attempts <= 40, "{text}");
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
}

mod pinning {
    use super::*;

    /// A file that is replaced after the first answer; `answer` makes the later ones.
    fn replaced(
        answer: impl Fn(&common::http::Request, &[u8]) -> Reply + Send + Sync + 'static,
        first: impl Fn(Reply) -> Reply + Send + Sync + 'static,
    ) -> StoreError {
        let (old, new) = (model(4, 300_000), model(4, 300_000));
        let server = Server::start(move |request, count| match count {
            0 => first(serve(request, &old, "\"old\"")),
            _ => answer(request, &new),
        });
        let checkpoint = open_at(&server.url("/m")).unwrap();
        checkpoint.read_bytes("t3").unwrap_err()
    }

    #[track_caller]
    fn names(error: &StoreError, said: [&str; 3]) {
        let (remote, text) = remote_error(error);
        assert!(matches!(remote.problem, Problem::Changed { .. }), "{text}");
        for said in said {
            assert!(text.contains(said), "{said} in: {text}");
        }
    }

    #[test]
    fn a_replaced_object_is_an_error_that_names_both() {
        let error = replaced(|request, new| serve(request, new, "\"new\""), |first| first);
        names(&error, ["\"old\"", "\"new\"", "open it again"]);
    }

    #[test]
    fn also_if_the_server_ignores_the_condition() {
        let answer = |request: &common::http::Request, new: &[u8]| {
            let mut request = request.clone();
            request.headers.retain(|(name, _)| name != "if-match");
            serve(&request, new, "\"new\"")
        };
        names(
            &replaced(answer, |first| first),
            ["\"old\"", "\"new\"", "open it again"],
        );
    }

    #[test]
    fn also_if_412_does_not_say_what_is_there_now() {
        let answer = |request: &common::http::Request, new: &[u8]| match request.header("if-match")
        {
            Some(_) => Reply::new(412),
            None => serve(request, new, "\"new\""),
        };
        names(
            &replaced(answer, |first| first),
            ["\"old\"", "\"new\"", "412"],
        );
    }

    #[test]
    fn dates_serve_where_there_are_no_etags() {
        let answer = |request: &common::http::Request, new: &[u8]| {
            assert_eq!(
                request.header("if-unmodified-since"),
                Some("Sun, 01 Nov 2026 00:00:00 GMT")
            );
            serve(request, new, "")
                .without("ETag")
                .with("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
        };
        let first = |reply: Reply| {
            reply
                .without("ETag")
                .with("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
        };
        names(&replaced(answer, first), ["01 Nov", "02 Nov", "replaced"]);
    }

    #[test]
    fn weak_etags_are_compared_but_no_condition() {
        let answer = |request: &common::http::Request, new: &[u8]| {
            assert_eq!(request.header("if-match"), None);
            serve(request, new, "W/\"new\"")
        };
        let first = |reply: Reply| reply.with("ETag", "W/\"old\"");
        names(
            &replaced(answer, first),
            ["W/\"old\"", "W/\"new\"", "replaced"],
        );
    }

    #[test]
    fn another_size_is_enough() {
        let answer = |request: &common::http::Request, _: &[u8]| {
            let longer = model(4, 300_001);
            serve(request, &longer, "").without("ETag")
        };
        let error = replaced(answer, |first| first.without("ETag"));
        names(&error, ["1200", "bytes", "replaced"]);
    }

    #[test]
    fn a_strong_etag_is_demanded_of_every_later_answer() {
        let server = Server::of_file(model(4, 300_000));
        let checkpoint = open_at(&server.url("/m")).unwrap();
        checkpoint.read_bytes("t1").unwrap();
        let requests = server.requests();
        assert_eq!(requests[0].header("if-match"), None);
        for later in &requests[1..] {
            assert_eq!(later.header("if-match"), Some("\"one\""));
        }
        assert!(requests.len() > 1);
    }
}

mod redirects {
    use super::*;

    #[test]
    fn they_are_followed_and_remembered_and_secrets_stay_at_home() {
        let bytes = model(4, 300_000);
        let there = Server::of_file(bytes);
        let target = there.url("/cdn/m?signature=hush");
        let home = Server::start(move |_, _| Reply::new(302).with("Location", &target));
        let url = home.url("/m").replace("http://", "http://me:pw@");
        let checkpoint = open_at(&url).unwrap();
        checkpoint.read_bytes("t3").unwrap();
        assert_eq!(home.count(), 1, "later requests go straight there");
        assert!(home.requests()[0].header("authorization").is_some());
        assert!(there.count() > 2);
        for request in there.requests() {
            assert_eq!(request.header("authorization"), None);
            assert_eq!(request.target, "/cdn/m?signature=hush");
        }
    }

    #[test]
    fn one_that_expired_is_asked_for_again() {
        let bytes = model(4, 300_000);
        let server = Server::start(move |request, count| match request.target.as_str() {
            "/m" => Reply::new(307).with("Location", &format!("/at/{count}")),
            // The first target is good once.
            "/at/0" if count > 1 => Reply::new(403),
            _ => serve(request, &bytes, "\"one\""),
        });
        let checkpoint = open_at(&server.url("/m")).unwrap();
        assert_eq!(checkpoint.read_bytes("t3").unwrap().len(), 300_000);
    }

    #[test]
    fn circles_and_other_schemes_are_refused() {
        for (target, said) in [
            ("/m", "circle"),
            ("file:///etc/passwd", "not followed"),
            ("ftp://h/x?secret", "not followed"),
            ("http://[", "no URL"),
        ] {
            let server = Server::start(move |_, _| Reply::new(302).with("Location", target));
            let (error, text) = fails(&server.url("/m"));
            assert!(matches!(error.problem, Problem::Redirect(_)), "{text}");
            assert!(text.contains(said) && !text.contains("secret"), "{text}");
        }
        let server = Server::start(|_, _| Reply::new(301));
        assert!(fails(&server.url("/m")).1.contains("where to"));
    }
}

mod caching {
    use super::*;

    fn cached(folder: &Folder) -> RemoteOptions {
        let cache = CacheChoice::On {
            folder: folder.join("cache"),
            limit_bytes: 1 << 30,
        };
        RemoteOptions { cache, ..options() }
    }

    fn read(url: &str, options: &RemoteOptions) -> Vec<u8> {
        let checkpoint = open(url, &OpenOptions::default(), options).unwrap();
        checkpoint.read_bytes("t2").unwrap()
    }

    /// All files below a folder.
    fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => all.extend(walk(&entry.path())),
                false => all.push(entry.path()),
            }
        }
        all
    }

    #[test]
    fn what_was_read_once_is_not_fetched_again() {
        let folder = Folder::new();
        let server = Server::of_file(model(4, 300_000));
        let url = server.url("/m?X-Amz-Signature=hush1");
        let first = read(&url, &cached(&folder));
        server.forget();
        // Another signature, the same object.
        let again = server.url("/m?X-Amz-Signature=hush2");
        assert!(read(&again, &cached(&folder)) == first);
        assert_eq!(server.count(), 1, "only whether it is the same still");
        assert_eq!(server.sent_bytes(), 0);
        assert_eq!(
            server.requests()[0].header("if-none-match"),
            Some("\"one\"")
        );
        for path in walk(folder.path()) {
            let name = path.to_string_lossy().into_owned();
            let content = std::fs::read(&path).unwrap();
            let spilled = content.windows(4).any(|window| window == b"hush");
            assert!(!spilled && !name.contains("hush"), "{name}");
        }
        // Without the cache all is fetched.
        server.forget();
        assert!(read(&url, &options()) == first);
        assert!(server.sent_bytes() >= 300_000);
    }

    #[test]
    fn a_replaced_object_is_fetched_anew() {
        let folder = Folder::new();
        let version = std::sync::Arc::new(AtomicUsize::new(1));
        let current = std::sync::Arc::clone(&version);
        let files = [model(4, 300_000), model(3, 300_000)];
        let server = Server::start(move |request, _| {
            let version = current.load(Ordering::SeqCst);
            serve(request, &files[version - 1], &format!("\"{version}\""))
        });
        let url = server.url("/m");
        let first = read(&url, &cached(&folder));
        version.store(2, Ordering::SeqCst);
        let checkpoint = open(&url, &OpenOptions::default(), &cached(&folder)).unwrap();
        assert_eq!(checkpoint.len(), 3);
        assert_eq!(checkpoint.read_bytes("t2").unwrap().len(), first.len());
    }

    #[test]
    fn damaged_pieces_are_fetched_again() {
        let folder = Folder::new();
        let server = Server::of_file(model(4, 300_000));
        let first = read(&server.url("/m"), &cached(&folder));
        let mut damaged = 0;
        for path in walk(folder.path()) {
            let mut content = std::fs::read(&path).unwrap();
            if content.len() > 1000 {
                let middle = content.len() / 2;
                content[middle] ^= 1;
                std::fs::write(&path, content).unwrap();
                damaged += 1;
            }
        }
        assert!(damaged > 3);
        assert!(read(&server.url("/m"), &cached(&folder)) == first);
    }

    #[test]
    fn nothing_is_kept_without_a_strong_etag() {
        let folder = Folder::new();
        let bytes = model(4, 300_000);
        let server = Server::start(move |request, _| serve(request, &bytes, "W/\"weak\""));
        read(&server.url("/m"), &cached(&folder));
        assert_eq!(walk(folder.path()), Vec::<std::path::PathBuf>::new());
    }

    #[test]
    fn an_answer_that_nothing_changed_must_have_been_asked_for() {
        let server = Server::start(|_, _| Reply::new(304));
        let (error, text) = fails(&server.url("/m"));
        assert!(matches!(error.problem, Problem::BadAnswer(_)), "{text}");
    }
}

mod shards {
    use super::*;

    fn index(shards: &[(&str, &str)]) -> String {
        let entries: Vec<String> = shards
            .iter()
            .map(|(tensor, shard)| format!("{}: {}", quoted(tensor), quoted(shard)))
            .collect();
        format!("{{\"weight_map\": {{{}}}}}", entries.join(", "))
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\"))
    }

    fn hosting(index: String) -> Server {
        let one = file_of(&[tensor("a", &[1; 100_000])], None);
        let two = file_of(&[tensor("b", &[2; 100_000])], None);
        Server::start(move |request, _| match request.target.as_str() {
            "/d/model.safetensors.index.json?v=1" => serve(request, index.as_bytes(), "\"i\""),
            "/d/one.safetensors?v=1" => serve(request, &one, "\"1\""),
            "/d/sub/two%20x.safetensors?v=1" => serve(request, &two, "\"2\""),
            _ => Reply::new(404),
        })
    }

    fn tensor<'t>(name: &'t str, bytes: &'t [u8]) -> TensorView<'t> {
        TensorView {
            name,
            dtype: Dtype::U8,
            shape: &[100_000],
            bytes,
        }
    }

    #[test]
    fn an_index_opens_its_shards() {
        let index = index(&[("a", "one.safetensors"), ("b", "sub/two x.safetensors")]);
        let server = hosting(index);
        let url = server.url("/d/model.safetensors.index.json?v=1");
        let checkpoint = open_at(&url).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.file_count()), (2, 2));
        assert_eq!(checkpoint.read_bytes("a").unwrap(), [1; 100_000]);
        assert_eq!(checkpoint.read_bytes("b").unwrap(), [2; 100_000]);
    }

    #[test]
    fn all_missing_shards_are_named() {
        let index = index(&[("a", "one.safetensors"), ("b", "no1"), ("c", "no2")]);
        let server = hosting(index);
        let error = open_at(&server.url("/d/model.safetensors.index.json?v=1")).unwrap_err();
        match &error {
            StoreError::ShardsMissing {
                shards,
                shard_count,
                ..
            } => {
                assert_eq!(
                    (shards.as_slice(), *shard_count),
                    (["no1".to_owned(), "no2".to_owned()].as_slice(), 3)
                );
            }
            _ => panic!("{error}"),
        }
    }

    #[test]
    fn shards_elsewhere_are_refused() {
        for name in [
            "../one.safetensors",
            "/etc/passwd",
            "http://other/one.safetensors",
            "a/../../b",
            "..\\x",
            "a?b",
            "a#b",
            "",
        ] {
            let server = hosting(index(&[("a", name)]));
            let error = open_at(&server.url("/d/model.safetensors.index.json?v=1")).unwrap_err();
            assert!(
                matches!(error, StoreError::ShardOutside { .. }),
                "{name}: {error}"
            );
            assert_eq!(server.count(), 1, "{name}");
        }
    }
}

mod stores {
    use super::*;

    /// Runs `open` on a URL of a signed store whose API is this file at any path; gives the last request.
    fn last_request(url: &str, settings: &[(&str, &str)]) -> common::http::Request {
        let server = Server::of_file(model(2, 1000));
        let endpoint = server.url("");
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.replace("ENDPOINT", &endpoint)))
            .collect();
        let remote = RemoteOptions {
            settings,
            ..options()
        };
        let checkpoint = open(url, &OpenOptions::default(), &remote).unwrap();
        assert_eq!(checkpoint.read_bytes("t1").unwrap().len(), 1000);
        assert_eq!(checkpoint.label(), url);
        server.requests().pop().unwrap()
    }

    const S3: [(&str, &str); 5] = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL", "ENDPOINT"),
        ("AWS_ALLOW_HTTP", "true"),
    ];

    #[test]
    fn s3_requests_are_signed() {
        let request = last_request("s3://bucket/a%20b/m.safetensors", &S3);
        assert_eq!(request.target, "/bucket/a%20b/m.safetensors");
        let signature = request.header("authorization").unwrap();
        assert!(
            signature.starts_with("AWS4-HMAC-SHA256 Credential=key/"),
            "{signature}"
        );
        assert!(
            signature.contains("/eu-west-1/s3/aws4_request"),
            "{signature}"
        );
    }

    #[test]
    fn gcs_requests_have_its_form() {
        let account = r#"{"gcs_base_url": "ENDPOINT", "disable_oauth": true, "client_email": "",
            "private_key": "", "private_key_id": ""}"#;
        let settings = [
            ("GOOGLE_SERVICE_ACCOUNT_KEY", account),
            ("GOOGLE_ALLOW_HTTP", "true"),
        ];
        let request = last_request("gs://bucket/dir/m.safetensors", &settings);
        assert_eq!(request.target, "/bucket/dir%2Fm%2Esafetensors");
    }

    #[test]
    fn azure_requests_are_signed() {
        let settings = [
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaA=="),
            ("AZURE_STORAGE_ENDPOINT", "ENDPOINT"),
            ("AZURE_ALLOW_HTTP", "true"),
        ];
        let request = last_request("az://container/dir/m.safetensors", &settings);
        assert_eq!(request.target, "/container/dir/m.safetensors");
        let signature = request.header("authorization").unwrap();
        assert!(signature.starts_with("SharedKey account:"), "{signature}");
        assert!(request.header("x-ms-version").is_some());
    }

    #[test]
    fn credentials_go_over_open_connections_only_if_that_is_allowed() {
        let server = Server::of_file(model(2, 1000));
        let endpoint = server.url("");
        let settings = S3.iter().filter(|(name, _)| *name != "AWS_ALLOW_HTTP");
        let settings = settings
            .map(|(name, value)| ((*name).to_owned(), value.replace("ENDPOINT", &endpoint)))
            .collect();
        let remote = RemoteOptions {
            settings,
            ..options()
        };
        let error = open("s3://b/m", &OpenOptions::default(), &remote).unwrap_err();
        let (error, text) = remote_error(&error);
        assert!(matches!(error.problem, Problem::Settings(_)), "{text}");
        assert!(
            text.contains("AWS_ALLOW_HTTP") && !text.contains("hush"),
            "{text}"
        );
        assert_eq!(server.count(), 0);
    }

    #[test]
    fn s3_answers_that_refuse_are_told_by_their_code() {
        let server = Server::start(|_, _| {
            Reply::new(403).body(b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>hush</StringToSign></Error>")
        });
        let endpoint = server.url("");
        let settings = S3
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.replace("ENDPOINT", &endpoint)))
            .collect();
        let remote = RemoteOptions {
            settings,
            ..options()
        };
        let error = open("s3://b/m", &OpenOptions::default(), &remote).unwrap_err();
        let (error, text) = remote_error(&error);
        assert_eq!(error.status, Some(403));
        assert!(
            text.contains("SignatureDoesNotMatch") && !text.contains("hush"),
            "{text}"
        );
    }
}

#[test]
fn urls_are_locations_like_paths() {
    let folder = Folder::new();
    let bytes = model(2, 1000);
    let path = folder.write("m.safetensors", &bytes);
    let server = Server::of_file(bytes);
    // Tests share a process, so one of them chooses.
    let chosen = safelight_store::remote::choose(options());
    assert!(chosen.is_ok());
    let names = Mutex::new(Vec::new());
    let go_on = |_: u64, _: u64| ControlFlow::Continue(());
    let all = HashOptions {
        autov1: true,
        sha256: true,
        data_sha256: true,
        blake3: true,
    };
    let hashes =
        |location: &std::ffi::OsStr| location::hash(location, &all, &mut { go_on }).unwrap();
    let url = std::ffi::OsString::from(server.url("/m"));
    assert_eq!(hashes(&url), hashes(path.as_os_str()));
    let verdict = location::verify(&url, &OpenOptions::default(), &mut { go_on }).unwrap();
    assert!(verdict.is_intact());
    assert_eq!(verdict.files[0].intact().count(), 2);
    for location in [url, path.into_os_string()] {
        let checkpoint = location::open(location).unwrap();
        let all: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        names.lock().unwrap().push(all);
    }
    let names = names.into_inner().unwrap();
    assert_eq!(names[0], names[1]);
    assert!(location::open("ftp://h/m").is_err());
}

/// TLS and the network, where a machine has them.
#[test]
fn https_by_the_environment() {
    let Ok(url) = std::env::var("SAFELIGHT_TEST_URL") else {
        eprintln!(
            "SKIPPED: set SAFELIGHT_TEST_URL to an https URL of a file of at least 1 MB on a server with ranges"
        );
        return;
    };
    let remote = RemoteOptions {
        timeout: Duration::from_secs(20),
        ..options()
    };
    let file = open_file(&url, &remote).unwrap();
    let byte_count = file.byte_count().unwrap();
    let mut end = vec![0; 100];
    let count = file.read_at(&mut end, byte_count - 100).unwrap();
    assert!(count > 0);
    eprintln!("{file:?}: {:?}", file.traffic());
}
