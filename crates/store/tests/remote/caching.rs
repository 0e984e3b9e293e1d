//! The cache on disk.

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
