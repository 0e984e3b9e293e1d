//! Redirects, and who gets credentials.

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
