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
