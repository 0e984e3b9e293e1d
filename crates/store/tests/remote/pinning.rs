//! A file that changes while it is read.

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
    let answer = |request: &common::http::Request, new: &[u8]| match request.header("if-match") {
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

/// A server that leaves marks out after the first answer, and has another file of the same size since.
fn unmarked(first: fn(Reply) -> Reply, later: fn(Reply) -> Reply) -> Result<Vec<u8>, StoreError> {
    let bytes = model(4, 300_000);
    let server = Server::start(move |request, count| {
        let mut request = request.clone();
        request.headers.retain(|(name, _)| name != "if-match");
        let reply = serve(&request, &bytes, "\"one\"");
        match count {
            0 => first(reply),
            _ => later(reply.without("ETag")),
        }
    });
    open_at(&server.url("/m")).unwrap().read_bytes("t3")
}

#[test]
fn an_etag_stays_pinned_where_later_answers_leave_it_out() {
    let error = unmarked(|first| first, |later| later).unwrap_err();
    let (remote, text) = remote_error(&error);
    assert!(matches!(remote.problem, Problem::Unmarked { .. }), "{text}");
    assert!(
        text.contains("\"one\"") && text.contains("run the command again"),
        "{text}"
    );
    // Another answer's date says nothing if the first had none.
    let error = unmarked(|first| first, |later| later.with("Last-Modified", "Mon")).unwrap_err();
    assert!(matches!(
        remote_error(&error).0.problem,
        Problem::Unmarked { .. }
    ));
}

#[test]
fn a_date_that_stays_stands_in_for_an_etag_that_is_left_out() {
    let first = |reply: Reply| reply.with("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT");
    assert_eq!(unmarked(first, first).unwrap().len(), 300_000);
    let other = |reply: Reply| reply.with("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT");
    names(
        &unmarked(first, other).unwrap_err(),
        ["\"one\"", "02 Nov", "replaced"],
    );
}

#[test]
fn a_replaced_object_is_not_asked_for_again() {
    let (old, new) = (model(4, 300_000), model(4, 300_000));
    let server = Server::start(move |request, count| match count {
        0 => serve(request, &old, "\"old\""),
        _ => serve(request, &new, "\"new\""),
    });
    let checkpoint = open_at(&server.url("/m")).unwrap();
    let first = checkpoint.read_bytes("t3").unwrap_err().to_string();
    std::thread::sleep(Duration::from_millis(200));
    let count = server.count();
    assert_eq!(checkpoint.read_bytes("t1").unwrap_err().to_string(), first);
    assert_eq!(server.count(), count);
}
