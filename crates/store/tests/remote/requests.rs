//! What is asked for, and how often.

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
                    let same =
                        checkpoint.read_bytes(&name).unwrap() == file.read_bytes(&name).unwrap();
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
