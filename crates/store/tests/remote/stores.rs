//! Signed stores: S3, Google, Azure.

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
        Reply::new(403).body(
            b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>hush</StringToSign></Error>",
        )
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
