//! Shards named by a remote index.

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
fn verify_walks_the_shards_and_what_is_between_them() {
    let check = |index: String| {
        let server = hosting(index);
        let url = server.url("/d/model.safetensors.index.json?v=1");
        let go_on = &mut |_, _| ControlFlow::Continue(());
        location::verify(&url, &OpenOptions::default(), go_on)
    };
    let shards = [("a", "one.safetensors"), ("b", "sub/two x.safetensors")];
    let verdict = check(index(&shards)).unwrap();
    assert!(verdict.is_intact(), "{verdict:?}");
    assert_eq!(verdict.files.len(), 2);
    // `c` is in no shard.
    let verdict = check(index(&[shards[0], shards[1], ("c", "one.safetensors")])).unwrap();
    let problems = verdict.index.as_ref().unwrap().problems.len();
    assert!(!verdict.is_intact() && problems == 1, "{verdict:?}");
    let error = check(index(&[shards[0], ("b", "no1")])).unwrap_err();
    assert!(matches!(error, StoreError::ShardsMissing { .. }), "{error}");
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
