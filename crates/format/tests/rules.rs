//! Every rule of the format, one broken at a time, with the verdicts of both modes and the words
//! that the reader gets.

mod common;

use common::file;
use safelight_format::{
    Dtype, FormatError, Header, Limits, OpaqueTensor, ParseOptions, Strictness,
};

fn parse(file: &[u8], strictness: Strictness) -> Result<Header, FormatError> {
    Header::parse(file, file.len() as u64, strictness, &Limits::default())
}

/// Both modes accept.
#[track_caller]
fn accepted(json: &str, data_bytes: usize) {
    let file = file(json, data_bytes);
    for strictness in [Strictness::Spec, Strictness::Compat] {
        if let Err(error) = parse(&file, strictness) {
            panic!("{strictness:?} refuses {json}: {error}");
        }
    }
}

/// Both modes refuse and say this.
#[track_caller]
fn refused(json: &str, data_bytes: usize, message: &str) {
    refused_file(&file(json, data_bytes), message);
}

#[track_caller]
fn refused_file(file: &[u8], message: &str) {
    for strictness in [Strictness::Spec, Strictness::Compat] {
        let error = parse(file, strictness).expect_err(&format!("{strictness:?} accepts it"));
        assert_eq!(error.to_string(), message, "{strictness:?}");
    }
}

/// Only the strict mode refuses; it says this.
#[track_caller]
fn strict_only(json: &str, data_bytes: usize, message: &str) {
    let file = file(json, data_bytes);
    let error = parse(&file, Strictness::Spec).expect_err("Spec accepts it");
    assert_eq!(error.to_string(), message);
    if let Err(error) = parse(&file, Strictness::Compat) {
        panic!("Compat refuses {json}: {error}");
    }
}

#[test]
fn length_and_size() {
    refused_file(b"", "the file is empty; download or copy it again");
    refused_file(
        b"1234567",
        "the file has 7 bytes, a safetensors file at least 10; download or copy it again",
    );
    refused_file(
        &[[0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0].as_slice(), b"{}"].concat(),
        "the first eight bytes ask for a header of 100000001 bytes, the limit is 100000000: \
         probably not a safetensors file",
    );
    refused_file(
        b"\x09\0\0\0\0\0\0\0{}      ",
        "the first eight bytes ask for a header of 9 bytes, the whole file has 16: cut short, or not a safetensors \
         file; download or copy it again",
    );
    refused_file(
        b"\x04\0\0\0\0\0\0\0{\"\xff\"",
        "the header is not text: byte 10 of the file is not UTF-8",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        5,
        "the header describes 65 bytes, the file has 66: 1 bytes behind the last tensor belong to nothing",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
        7,
        "the file is cut short: its header describes 121 bytes, there are 120 (1 of 2 tensors are complete); \
         download or copy it again",
    );
}

#[test]
fn one_json_object_and_nothing_else() {
    accepted("{}", 0);
    accepted("{}      ", 0);
    accepted(
        "{ \"a\" : { \"dtype\" : \"U8\" ,\n\"shape\":[ 1 ],\t\"data_offsets\":[ 0 , 1 ] } }",
        1,
    );
    refused(
        "",
        0,
        "the header is not JSON: at byte 8 of the file `{` is expected, found the header's end",
    );
    refused(
        "{",
        0,
        "the header is not JSON: at byte 9 of the file a name in quotes is expected, found the header's end",
    );
    refused(
        "{}{}",
        0,
        "the header is not JSON: at byte 10 of the file only spaces behind the last `}` is expected, found `{`",
    );
    refused(
        "{},",
        0,
        "the header is not JSON: at byte 10 of the file only spaces behind the last `}` is expected, found `,`",
    );
    refused(
        "{\"a\":1,}",
        0,
        "the header's entry `a` has an integer at byte 13 of the file where an object is expected",
    );
    refused(
        "{\"\\ud800\":{}}",
        0,
        "the header is not JSON: at byte 16 of the file the second half of a surrogate pair is expected, found `\"`",
    );
    refused(
        "{\"a\nb\":{}}",
        0,
        "the header is not JSON: at byte 11 of the file text without control characters is expected, found `\\n`",
    );
    for (json, found) in [
        ("null", "n"),
        ("[]", "["),
        ("\u{feff}{}", "\\u{feff}"),
        ("\0{}", "\\u{0}"),
    ] {
        let file = file(json, 0);
        assert!(parse(&file, Strictness::Compat).is_err(), "{json}");
        let error = parse(&file, Strictness::Spec).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the header is not JSON: at byte 8 of the file `{{` is expected, found `{found}`"
            )
        );
    }
}

#[test]
fn only_spaces_as_padding_and_nothing_before() {
    strict_only(
        " {}",
        0,
        "the header starts with ` ` where the format asks for `{`",
    );
    strict_only(
        "\n{}",
        0,
        "the header starts with `\\n` where the format asks for `{`",
    );
    strict_only(
        "{}  \n",
        0,
        "the header is padded with `\\n` at byte 12 of the file; the format allows spaces only",
    );
    let error = parse(&file("{}\0", 0), Strictness::Spec)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the header is padded with `\\u{0}` at byte 10 of the file; the format allows spaces only"
    );
    assert!(parse(&file("{}\0", 0), Strictness::Compat).is_err());
}

#[test]
fn entries() {
    refused(
        r#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#,
        1,
        "tensor `a` has no `dtype`",
    );
    refused(
        r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#,
        1,
        "tensor `a` has no `shape`",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[1]}}"#,
        1,
        "tensor `a` has no `data_offsets`",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#,
        1,
        "tensor `a` has `shape` twice",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        1,
        "the header is not JSON: at byte 56 of the file `,` and a second integer is expected, found `]`",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        1,
        "the header is not JSON: at byte 58 of the file `]` behind the second integer is expected, found `,`",
    );
    refused(
        r#"{"a":{"dtype":"u8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
        "tensor `a` has dtype `u8`, none of the 22 that the format has",
    );
    refused(
        r#"{"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}}"#,
        1,
        "`dtype` of tensor `a` has an integer at byte 22 of the file where a dtype's name is expected",
    );
    strict_only(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{"y":1e3}]}}"#,
        1,
        "tensor `a` has a field `x` that the format does not know",
    );
    strict_only(
        r#"{"a":["U8",[1],[0,1]]}"#,
        1,
        "the header's entry `a` has an array at byte 13 of the file where an object is expected",
    );
    strict_only(
        r#"{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}"#,
        1,
        "`dtype` of tensor `a` has an object at byte 22 of the file where a dtype's name is expected",
    );
}

#[test]
fn numbers_are_plain_integers() {
    for number in ["-1", "4.0", "4e0", "-0", "18446744073709551616", "04", "+4"] {
        let file = file(
            &format!(r#"{{"a":{{"dtype":"U8","shape":[{number}],"data_offsets":[0,4]}}}}"#),
            4,
        );
        for strictness in [Strictness::Spec, Strictness::Compat] {
            assert!(parse(&file, strictness).is_err(), "{strictness:?} {number}");
        }
    }
    refused(
        r#"{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}"#,
        4,
        "`shape` of tensor `a` has a number that is negative, a fraction or too large at byte 36 of the file where an \
         integer from 0 to 2^64 - 1 is expected",
    );
}

#[test]
fn names_and_keys_once() {
    let one = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    strict_only(
        &format!(r#"{{"a":{one},"a":{one}}}"#),
        1,
        "two tensors are called `a`",
    );
    strict_only(
        &format!(r#"{{"a":{one},"\u0061":{one}}}"#),
        1,
        "two tensors are called `a`",
    );
    strict_only(
        r#"{"__metadata__":{"k":"1","k":"2"}}"#,
        0,
        "the header's `__metadata__` has the key `k` twice",
    );
    strict_only(
        r#"{"__metadata__":{"k":"1","\u006b":"2"}}"#,
        0,
        "the header's `__metadata__` has the key `k` twice",
    );
    refused(
        r#"{"__metadata__":{},"\u005f_metadata__":{}}"#,
        0,
        "the header has `__metadata__` twice",
    );
    // The last one wins, wherever it lies.
    let two = r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    let header = parse(&file(two, 3), Strictness::Compat).unwrap();
    let names: Vec<&str> = header.tensors().iter().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(header.get("a").unwrap().shape, [2]);
    assert_eq!(header.get("b").unwrap().data_offsets, (2, 3));
}

#[test]
fn metadata_is_text_to_text() {
    accepted(r#"{"__metadata__":{}}"#, 0);
    accepted(r#"{"__metadata__":{"format":"pt","":""}}"#, 0);
    strict_only(
        r#"{"__metadata__":null}"#,
        0,
        "the header's entry `__metadata__` has null at byte 24 of the file where an object of texts is expected",
    );
    refused(
        r#"{"__metadata__":{"a":1}}"#,
        0,
        "the header's entry `__metadata__` has an integer at byte 29 of the file where text as value is expected",
    );
    refused(
        r#"{"__metadata__":[]}"#,
        0,
        "the header's entry `__metadata__` has an array at byte 24 of the file where an object of texts is expected",
    );
    let last = parse(
        &file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0),
        Strictness::Compat,
    )
    .unwrap();
    assert_eq!(last.metadata().unwrap()["k"], "2");
}

#[test]
fn tensors_tile_the_data() {
    refused(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
        "tensor `a` starts at byte 1, expected 0 (a hole before it)",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
        3,
        "tensor `b` starts at byte 1, expected 2 (it overlaps another)",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
        2,
        "tensor `b` starts at byte 0, expected 2 (it overlaps another)",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"c":{"dtype":"U8","shape":[0],"data_offsets":[1,0]}}"#,
        1,
        "tensor `c` starts at byte 1 and ends before it, at 0",
    );
    accepted(
        r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"e":{"dtype":"F32","shape":[2,0],"data_offsets":[1,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#,
        2,
    );
}

#[test]
fn sizes() {
    refused(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
        "tensor `a` of F32 [2] needs 8 bytes, its data_offsets span 4",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}}"#,
        0,
        "tensor `a` of U8 [9223372036854775808, 4, 0] has more than 2^64 bits",
    );
    refused(
        r#"{"a":{"dtype":"U8","shape":[2305843009213693952],"data_offsets":[0,0]}}"#,
        0,
        "tensor `a` of U8 [2305843009213693952] has more than 2^64 bits",
    );
    accepted(
        r#"{"a":{"dtype":"U8","shape":[0,9223372036854775808,4],"data_offsets":[0,0]}}"#,
        0,
    );
    refused(
        r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#,
        2,
        "tensor `a` of F4 has 12 bits, which do not fill whole bytes",
    );
    accepted(
        r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}"#,
        3,
    );
    // Nine tensors that tile 2^64 - 1 bytes and then some: no sum may wrap.
    let huge = 1u64 << 60;
    let entries = (0..15).map(|i| {
        format!(
            r#""{i:02}":{{"dtype":"U8","shape":[{huge}],"data_offsets":[{},{}]}}"#,
            i * huge,
            (i + 1) * huge
        )
    });
    let last = format!(
        r#""15":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}"#,
        huge - 1,
        15 * huge,
        u64::MAX
    );
    let json = format!("{{{},{last}}}", entries.collect::<Vec<_>>().join(","));
    let error = parse(&file(&json, 0), Strictness::Spec).unwrap_err();
    assert!(
        matches!(
            error,
            FormatError::FileTooShort {
                expected_bytes: u64::MAX,
                intact_count: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn any_rank_and_name() {
    let shape = vec!["1"; 2000].join(",");
    for name in [
        "",
        "../../etc/passwd",
        "\\u0000",
        "a b",
        "😀",
        "__metadata___",
    ] {
        accepted(
            &format!(r#"{{"{name}":{{"dtype":"BOOL","shape":[{shape}],"data_offsets":[0,1]}}}}"#),
            1,
        );
    }
}

#[test]
fn all_22_dtypes() {
    for dtype in Dtype::ALL {
        let json = format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,{}]}}}}"#,
            dtype.bits()
        );
        accepted(&json, dtype.bits() as usize);
    }
    assert_eq!(Dtype::ALL.len(), 22);
}

#[test]
fn messages_escape_names() {
    refused(
        "{\"\\u001b[2J\u{202e}x\":{\"dtype\":\"U8\",\"shape\":[1]}}",
        1,
        "tensor `\\u{1b}[2J\\u{202e}x` has no `data_offsets`",
    );
}

#[test]
fn limits() {
    let one = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#)
    };
    let json = format!(
        r#"{{"__metadata__":{{"key":"value"}},{},{}}}"#,
        one("abc", "0"),
        one("d", "0,1,2")
    );
    let file = file(&json, 0);
    let check = |limits: Limits, message: &str| {
        let error =
            Header::parse(&file, file.len() as u64, Strictness::Compat, &limits).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    let no = Limits::default();
    check(
        Limits {
            header_bytes_max: 20,
            ..no
        },
        &format!(
            "the header has {0} bytes, the limit is 20; if you trust the file, raise the limit: `--max-header {0}`, in \
             programs `Limits::header_bytes_max`",
            json.len()
        ),
    );
    check(
        Limits {
            tensor_count_max: 1,
            ..no
        },
        "the file has more tensors than the limit of 1",
    );
    check(
        Limits { rank_max: 2, ..no },
        "tensor `d` has more dimensions than the limit of 2",
    );
    check(
        Limits {
            name_bytes_max: 2,
            ..no
        },
        "tensor name `abc` has 3 bytes, the limit is 2",
    );
    check(
        Limits {
            metadata_bytes_max: 7,
            ..no
        },
        "the header's `__metadata__` has more than the limit of 7 bytes",
    );
    let fits = Limits {
        header_bytes_max: json.len() as u64,
        tensor_count_max: 2,
        rank_max: 3,
        name_bytes_max: 3,
        metadata_bytes_max: 8,
    };
    assert!(Header::parse(&file, file.len() as u64, Strictness::Spec, &fits).is_ok());
}

#[test]
fn a_prefix_is_enough_and_too_little_of_it_says_so() {
    let whole = file(
        r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#,
        9,
    );
    let (file_bytes, limits) = (whole.len() as u64, Limits::default());
    let need = whole.len() - 9;
    assert!(Header::parse(&whole[..need], file_bytes, Strictness::Spec, &limits).is_ok());
    for short in [0, 7, 8, need - 1] {
        let error =
            Header::parse(&whole[..short], file_bytes, Strictness::Spec, &limits).unwrap_err();
        assert!(
            matches!(error, FormatError::PrefixTooShort { .. }),
            "{short}: {error}"
        );
    }
}

#[test]
fn unknown_dtypes_are_opaque_on_request() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}"#)
    };
    let parse = |entries: &[String], data_bytes: usize, strictness: Strictness| {
        let file = file(&format!("{{{}}}", entries.join(",")), data_bytes);
        let options = ParseOptions {
            strictness,
            opaque_dtypes: true,
            ..ParseOptions::default()
        };
        Header::parse_with(&file, file.len() as u64, &options)
    };
    let (a, b) = (
        entry("a", "U8", "2", "3,5"),
        entry("b", "ä\\u0034", "7,99", "0,3"),
    );
    let (c, empty) = (entry("c", "U8", "1", "5,6"), entry("", "", "", "6,6"));
    for strictness in [Strictness::Compat, Strictness::Spec] {
        let entries = [a.clone(), b.clone(), c.clone(), empty.clone()];
        let header = parse(&entries, 6, strictness).unwrap();
        let opaque: Vec<OpaqueTensor<'_>> = header.opaque_tensors().collect();
        let expected = OpaqueTensor {
            name: "b",
            dtype: "ä4",
            shape: &[7, 99],
            data_offsets: (0, 3),
        };
        assert_eq!((opaque[0], opaque.len()), (expected, 2));
        assert_eq!(
            (opaque[1].dtype, opaque[1].shape, opaque[1].byte_count()),
            ("", &[][..], 0)
        );
        let names: Vec<&str> = header.tensors().iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(
            (header.position("c"), header.position("b")),
            (Some(1), None)
        );
        assert_eq!(header.data_bytes(), 6);
        let short = parse(&entries, 5, strictness).unwrap_err();
        let FormatError::FileTooShort {
            intact_count,
            tensor_count,
            ..
        } = short
        else {
            panic!("{short}");
        };
        assert_eq!((intact_count, tensor_count), (2, 4));
        // The other rules hold for them, too.
        for (wrong, message) in [
            (
                entry("b", "X", "7", "1,3"),
                "tensor `b` starts at byte 1, expected 0 (a hole before it)",
            ),
            (
                entry("b", "X", "7", "0,4"),
                "tensor `a` starts at byte 3, expected 4 (it overlaps another)",
            ),
            (
                entry("b", "X", "-7", "0,3"),
                "`shape` of tensor `b` has a number that is negative",
            ),
        ] {
            let error = parse(&[a.clone(), wrong], 5, strictness).unwrap_err();
            assert!(error.to_string().starts_with(message), "{error}");
        }
        let backwards = parse(
            &[entry("b", "X", "7", "0,0"), entry("c", "X", "7", "1,0")],
            1,
            strictness,
        );
        assert!(backwards.is_err());
    }
    let twice = [entry("a", "X", "1", "0,3"), entry("a", "U8", "3", "0,3")];
    let header = parse(&twice, 3, Strictness::Compat).unwrap();
    assert_eq!(
        (header.tensors().len(), header.opaque_tensors().len()),
        (1, 0)
    );
    assert!(parse(&twice, 3, Strictness::Spec).is_err());
}
