#!/usr/bin/env python3
"""Writes testdata/conformance/: small safetensors files, right and wrong, and manifest.json with what
should become of each. Standard library only; the same bytes every time.

    python3 tools/conformance/make.py [FOLDER]

Verdicts: `compat` is what the safetensors crate 0.8.0 does, `spec` is what the format's description
(README and documentation of safetensors) asks for. They are written down here by hand, beside a reason;
`cargo test -p safelight-format --test conformance` holds our parser and the crate to them.
"""

import json
import shutil
import sys
from pathlib import Path

ACCEPT, REJECT = "accept", "reject"
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
CASES = []


def add(group, name, rule, compat, spec, reason, header, data=0, length=None):
    """One file: `header` is text or bytes, `data` bytes or how many zeros, `length` what the prefix claims."""
    if isinstance(header, str):
        header = header.encode()
    data = bytes(data) if isinstance(data, int) else data
    length = len(header) if length is None else length
    whole(group, name, rule, compat, spec, reason, length.to_bytes(8, "little") + header + data)


def whole(group, name, rule, compat, spec, reason, content):
    file = f"{group}-{name}.safetensors"
    assert all(case["file"] != file for case, _ in CASES), file
    case = {"file": file, "rule": rule, "compat": compat, "spec": spec, "reason": reason}
    CASES.append((case, content))


def both(group, name, rule, verdict, reason, header, data=0, length=None):
    add(group, name, rule, verdict, verdict, reason, header, data, length)


def loose(group, name, rule, reason, header, data=0):
    """The crate accepts it, the description does not."""
    add(group, name, rule, ACCEPT, REJECT, reason, header, data)


def entry(name="a", dtype='"U8"', shape="[4]", offsets="[0,4]", more=""):
    return f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


def one(**parts):
    return "{" + entry(**parts) + "}"


def many(*entries):
    return "{" + ",".join(entries) + "}"


def files_and_lengths():
    for count in (0, 1, 7):
        whole("length", f"file-of-{count}", 1, REJECT, REJECT, "a file has at least eight bytes", bytes(count))
    both("length", "prefix-only", 5, REJECT, "a header of no bytes is no JSON object", "")
    both("length", "limit-plus-one", 2, REJECT, "headers have at most 100,000,000 bytes", "{}", 0, 100_000_001)
    both("length", "two-to-the-63", 2, REJECT, "headers have at most 100,000,000 bytes", "{}", 0, 1 << 63)
    both("length", "all-ones", 2, REJECT, "headers have at most 100,000,000 bytes; 8 + N must not wrap", "{}", 0, (1 << 64) - 1)
    both("length", "one-beyond-the-file", 3, REJECT, "the header ends within the file", "{}", 0, 3)
    both("length", "limit-itself-in-a-small-file", 3, REJECT, "the header ends within the file", "{}", 0, 100_000_000)
    both("length", "one-too-short", 5, REJECT, "the header's JSON is cut before its last brace", one(), 4, len(one()) - 1)
    both("length", "big-endian", 2, REJECT, "the length is little-endian", "{}", 0, 2 << 56)
    both("length", "not-a-multiple-of-eight", 19, ACCEPT, "alignment is the writer's business", one(), 4)
    both("length", "padded-to-4096", 19, ACCEPT, "any number of spaces may pad the header", one().ljust(4088), 4)
    for name, magic in (("zip", b"PK\x03\x04"), ("gguf", b"GGUF\x03\0\0\0"), ("pickle", b"\x80\x02}q\0."), ("html", b"<!DOCTYPE html>")):
        whole("length", f"really-{name}", 2, REJECT, REJECT, f"this is {name}, whose first bytes are no sensible length", magic.ljust(40, b"\n"))


def text():
    for name, wrong in (
        ("lone-ff", b"\xff"), ("overlong-nul", b"\xc0\x80"), ("surrogate", b"\xed\xa0\x80"),
        ("beyond-unicode", b"\xf4\x90\x80\x80"), ("cut-short", b"\xc3"), ("lone-continuation", b"\x80"),
    ):
        header = one(name="@").encode().replace(b"@", wrong)
        both("utf8", f"name-{name}", 4, REJECT, "the header is UTF-8", header, 4)
    both("utf8", "metadata-value", 4, REJECT, "the header is UTF-8", b'{"__metadata__":{"a":"\xff"}}')
    both("utf8", "unknown-field", 4, REJECT, "the header is UTF-8, also where nobody looks", one(more=',"x":"@"').encode().replace(b"@", b"\xfe"), 4)
    both("utf8", "padding", 4, REJECT, "the header is UTF-8, its padding too", b"{}\xff")
    both("utf8", "byte-order-mark", 5, REJECT, "JSON has no byte order mark", b"\xef\xbb\xbf{}")
    both("utf8", "utf16", 4, REJECT, "the header is UTF-8, not UTF-16", "\ufeff{}".encode("utf-16-le"))
    both("utf8", "multibyte-name", 18, ACCEPT, "names are any text", one(name="größe 模型 😀"), 4)


def grammar():
    for name, header in (
        ("null", "null"), ("array", "[]"), ("text", '"a"'), ("number", "7"), ("true", "true"), ("nothing-but-spaces", "        "),
        ("open", "{"), ("open-name", '{"a'), ("two-objects", "{}{}"), ("closed-twice", "{}}"), ("comma-behind", "{},"), ("comma-first", "{,}"),
        ("letters-behind", "{}x"), ("nul-padding", "{}\0\0\0\0\0\0"), ("comment-line", "{}//"), ("comment-block", "{/**/}"),
        ("name-only", '{"a"}'), ("no-value", '{"a":}'), ("single-quotes", "{'a':{}}"), ("no-quotes", "{a:{}}"), ("form-feed", "{\f}"),
        ("no-break-space", "\u00a0{}"), ("vertical-tab-first", "\v{}"),
    ):
        both("json", name, 5, REJECT, "the header is one JSON object and nothing else", header)
    both("json", "comma-behind-last-entry", 5, REJECT, "JSON has no trailing commas", "{" + entry() + ",}", 4)
    both("json", "comma-behind-last-field", 5, REJECT, "JSON has no trailing commas", one(more=","), 4)
    both("json", "comma-in-shape", 5, REJECT, "JSON has no trailing commas", one(shape="[4,]"), 4)
    both("json", "no-comma-between-entries", 5, REJECT, "entries are separated by commas", "{" + entry(shape="[0]", offsets="[0,0]") + " " + entry("b") + "}", 4)
    both("json", "no-comma-in-offsets", 5, REJECT, "numbers are separated by commas", one(offsets="[0 4]"), 4)
    both("json", "no-colon", 5, REJECT, "a name and its value are separated by a colon", one().replace(":[4]", "[4]"), 4)
    both("json", "bracket-for-brace", 5, REJECT, "brackets match", one()[:-1] + "]", 4)
    for name, spelling in (
        ("escape-x", "\\x41"), ("escape-octal", "\\101"), ("escape-short", "\\u12"), ("escape-not-hex", "\\u12g4"), ("escape-end", "\\"),
        ("lone-high-surrogate", "\\ud83d"), ("lone-low-surrogate", "\\ude00"), ("surrogates-reversed", "\\ude00\\ud83d"),
        ("high-surrogate-and-letter", "\\ud83d\\u0041"), ("raw-newline", "a\nb"), ("raw-tab", "a\tb"), ("raw-nul", "a\0b"), ("raw-unit-separator", "\x1f"),
    ):
        both("json", f"name-{name}", 5, REJECT, "strings hold no control characters and only JSON's escapes", one(name=spelling), 4)
    for name, spelling in (
        ("all-escapes", '\\"\\\\\\/\\b\\f\\n\\r\\t'), ("surrogate-pair", "\\ud83d\\ude00"), ("nul-escaped", "\\u0000"), ("hex-both-cases", "\\u00E4\\u00e4"),
        ("delete-raw", "\x7f"), ("line-separator-raw", "\u2028"),
    ):
        both("json", f"name-{name}", 18, ACCEPT, "JSON allows it in a string", one(name=spelling), 4)
    both("json", "spaces-between-tokens", 6, ACCEPT, "JSON allows white space between tokens", one().replace(":", " : ").replace(",", "\t,\r\n"), 4)
    for name, depth, verdict in (("127", 125, ACCEPT), ("128", 126, REJECT), ("5000", 5000, REJECT)):
        reason = "the crate's JSON parser stops at 128 levels; the description has no unknown fields"
        add("json", f"depth-{name}", 5, verdict, REJECT, reason, one(more=',"x":' + "[" * depth + "]" * depth), 4)
    for name, number, verdict in (
        ("largest-float", "1e308", ACCEPT), ("beyond-floats", "1e309", REJECT), ("tiny-float", "1e-999", ACCEPT), ("leading-zero", "01", REJECT),
        ("nan", "NaN", REJECT), ("infinity", "Infinity", REJECT), ("hex", "0x1", REJECT), ("plus", "+1", REJECT), ("point-first", ".5", REJECT), ("point-last", "5.", REJECT),
    ):
        add("json", f"unknown-field-{name}", 5, verdict, REJECT, "values of unknown fields must be JSON all the same", one(more=f',"x":{number}'), 4)


def white_space():
    for name, before in (("space", " "), ("newline", "\n"), ("tab", "\t"), ("return", "\r"), ("mixed", " \r\n\t ")):
        loose("space", f"before-{name}", 6, "the header must begin with `{`", before + one(), 4)
    for name, behind in (("newline", "\n"), ("tab", "\t"), ("return", "\r"), ("space-newline", "  \n")):
        loose("space", f"behind-{name}", 6, "the header is padded with spaces (0x20) only", one() + behind, 4)
    both("space", "behind-one-space", 6, ACCEPT, "the header may be padded with spaces", one() + " ", 4)


def entries():
    for field, rest in (
        ("dtype", '"shape":[4],"data_offsets":[0,4]'), ("shape", '"dtype":"U8","data_offsets":[0,4]'), ("offsets", '"dtype":"U8","shape":[4]'),
    ):
        both("entry", f"no-{field}", 7, REJECT, "an entry has dtype, shape and data_offsets", '{"a":{' + rest + "}}", 4)
    both("entry", "empty", 7, REJECT, "an entry has dtype, shape and data_offsets", '{"a":{}}')
    for field, value in (("dtype", '"U8"'), ("shape", "[4]"), ("data_offsets", "[0,4]")):
        both("entry", f"{field}-twice", 7, REJECT, "a field stands once in an entry", one(more=f',"{field}":{value}'), 4)
    both("entry", "field-twice-by-escape", 7, REJECT, "an escape spells the same name", one(more=',"dtyp\\u0065":"U8"'), 4)
    both("entry", "field-by-escape", 7, ACCEPT, "an escape spells the same name", one().replace("dtype", "d\\u0074ype"), 4)
    both("entry", "other-order", 7, ACCEPT, "fields may stand in any order", '{"a":{"data_offsets":[0,4],"shape":[4],"dtype":"U8"}}', 4)
    both("entry", "field-in-capitals", 7, REJECT, "names of fields are in lower case", one().replace("dtype", "Dtype"), 4)
    loose("entry", "unknown-field", 7, "the description has three fields and no more", one(more=',"x":null'), 4)
    loose("entry", "unknown-field-nested", 7, "the description has three fields and no more", one(more=',"x":{"dtype":[1,{}]}'), 4)
    loose("entry", "unknown-field-twice", 7, "the description has three fields and no more", one(more=',"x":1,"x":2'), 4)
    loose("entry", "as-array", 7, "an entry is an object; the crate's deserializer also takes an array", '{"a":["U8",[4],[0,4]]}', 4)
    both("entry", "as-short-array", 7, REJECT, "an entry has dtype, shape and data_offsets", '{"a":["U8",[4]]}', 4)
    both("entry", "as-long-array", 7, REJECT, "an entry has three fields", '{"a":["U8",[4],[0,4],0]}', 4)
    for name, value in (("null", "null"), ("number", "4"), ("text", '"U8"'), ("true", "true")):
        both("entry", f"is-{name}", 7, REJECT, "an entry is an object", f'{{"a":{value}}}')
    for name, value in (("one-number", "[0]"), ("three-numbers", "[0,4,4]"), ("no-numbers", "[]"), ("object", '{"0":0,"1":4}'), ("null", "null"), ("text", '"0,4"')):
        both("entry", f"offsets-{name}", 7, REJECT, "data_offsets are two integers", one(offsets=value), 4)
    for name, value in (("null", "null"), ("number", "4"), ("text", '"4"'), ("object", '{"0":4}'), ("nested", "[[4]]")):
        both("entry", f"shape-{name}", 7, REJECT, "a shape is an array of integers", one(shape=value), 4)


def integers():
    for name, number in (
        ("negative", "-4"), ("minus-zero", "-0"), ("point", "4.0"), ("exponent", "4e0"), ("capital-exponent", "4E0"), ("plus", "+4"),
        ("leading-zero", "04"), ("text", '"4"'), ("null", "null"), ("true", "true"), ("two-to-the-64", "18446744073709551616"), ("forty-digits", "1" * 40),
        ("hex", "0x4"), ("empty", ""),
    ):
        both("integer", f"shape-{name}", 8, REJECT, "integers are plain digits, below 2^64", one(shape=f"[{number}]"), 4)
        both("integer", f"offset-{name}", 8, REJECT, "integers are plain digits, below 2^64", one(offsets=f"[0,{number}]"), 4)
    both("integer", "above-two-to-the-53", 8, ACCEPT, "integers have 64 bits, not a float's 53", one(shape="[0,9007199254740993]", offsets="[0,0]"))
    both("integer", "largest", 8, ACCEPT, "integers have 64 bits", one(shape="[0,18446744073709551615]", offsets="[0,0]"))


def dtypes():
    for dtype, bits in BITS.items():
        header = one(dtype=f'"{dtype}"', shape="[8]", offsets=f"[0,{bits}]")
        both("dtype", dtype.lower().replace("_", "-"), 9, ACCEPT, f"{dtype} is one of the 22 dtypes, {bits} bits an element", header, bits)
    for name in ("f32", "Bf16", "F8_E4M3FN", "E8M0", "F32 ", " F32", "", "F6", "F8", "I4", "U1", "F128", "C128", "float32", "F32\\u0000"):
        label = name.replace(" ", "_").replace("\\u0000", "-nul") or "empty"
        header = one(dtype=f'"{name}"', shape="[0]", offsets="[0,0]")
        both("dtype", f"unknown-{label}", 9, REJECT, "a dtype is one of the 22, in capitals", header)
    for name, value in (("number", "4"), ("null", "null"), ("array", '["U8"]'), ("object-with-value", '{"U8":{}}'), ("object-of-two", '{"U8":null,"I8":null}'), ("empty-object", "{}")):
        both("dtype", f"is-{name}", 9, REJECT, "a dtype is a text", one(dtype=value), 4)
    loose("dtype", "is-object-with-null", 9, 'a dtype is a text; the crate\'s deserializer also takes {"U8":null}', one(dtype='{"U8":null}'), 4)
    both("dtype", "by-escape", 9, ACCEPT, "an escape spells the same text", one(dtype='"\\u00558"'), 4)


def names_twice():
    nothing = {"shape": "[0]", "offsets": "[0,0]"}
    loose("duplicate", "tensor", 10, "names are unique; the crate takes the last", many(entry(**nothing), entry(**nothing)))
    loose("duplicate", "tensor-last-one-fits", 10, "names are unique; the crate takes the last", many(entry(offsets="[3,7]"), entry()), 4)
    loose("duplicate", "tensor-by-escape", 10, "an escape spells the same name", many(entry(offsets="[9,13]"), entry(name="\\u0061")), 4)
    loose("duplicate", "tensor-three-times", 10, "names are unique; the crate takes the last", many(entry(offsets="[1,2]"), entry(offsets="[2,3]"), entry()), 4)
    both("duplicate", "tensor-first-one-fits", 10, REJECT, "of two tensors with one name the crate takes the last, which leaves a hole", many(entry(), entry(offsets="[4,8]")), 8)
    both("duplicate", "tensor-earlier-broken", 10, REJECT, "an entry that is overruled must still be one", many('"a":{}', entry()), 4)
    loose("duplicate", "tensor-earlier-wrong-size", 10, "names are unique; the crate takes the last", many(entry(shape="[99]"), entry()), 4)
    both("duplicate", "names-in-two-cases", 18, ACCEPT, "`a` and `A` are two names", many(entry(shape="[0]", offsets="[0,0]"), entry("A")), 4)
    both("duplicate", "names-normalised-apart", 18, ACCEPT, "names are compared byte by byte: é and e with an accent are two", many(entry("é", shape="[0]", offsets="[0,0]"), entry("e\u0301")), 4)


def metadata():
    def with_metadata(value, *entries):
        return many(f'"__metadata__":{value}', *entries)

    for name, value in (
        ("empty", "{}"), ("format", '{"format":"pt"}'), ("empty-key", '{"":""}'), ("unicode", '{"ключ":"值 😀"}'), ("escapes", '{"a\\n":"\\u0000\\ud83d\\ude00"}'),
        ("long-value", json.dumps({"a": "x" * 3000})), ("json-in-text", json.dumps({"ss_tag_frequency": json.dumps({"a": 1})})),
    ):
        both("metadata", name, 12, ACCEPT, "metadata maps texts to texts", with_metadata(value, entry()), 4)
    both("metadata", "no-tensors", 18, ACCEPT, "a file may have no tensors", with_metadata('{"a":"b"}'))
    both("metadata", "behind-tensors", 12, ACCEPT, "metadata may stand anywhere", many(entry(), '"__metadata__":{"a":"b"}'), 4)
    both("metadata", "by-escape", 12, ACCEPT, "an escape spells the same name", '{"__met\\u0061data__":{"a":"b"}}')
    loose("metadata", "null", 12, "metadata is an object", with_metadata("null", entry()), 4)
    for name, value in (("text", '"a"'), ("number", "1"), ("array", "[]"), ("array-of-pairs", '[["a","b"]]'), ("false", "false")):
        both("metadata", f"is-{name}", 12, REJECT, "metadata is an object", with_metadata(value, entry()), 4)
    for name, value in (("number", "1"), ("null", "null"), ("object", "{}"), ("array", '["b"]'), ("true", "true")):
        both("metadata", f"value-{name}", 12, REJECT, "metadata maps texts to texts", with_metadata(f'{{"a":{value}}}', entry()), 4)
    both("metadata", "is-a-tensor", 12, REJECT, "no tensor can be called `__metadata__`", many(entry("__metadata__")), 4)
    both("metadata", "twice", 11, REJECT, "there is one `__metadata__`", with_metadata("{}", '"__metadata__":{}'))
    both("metadata", "twice-null-first", 11, REJECT, "there is one `__metadata__`", with_metadata("null", '"__metadata__":{}'))
    loose("metadata", "key-twice", 11, "keys are unique; the crate takes the last", with_metadata('{"a":"b","a":"c"}'))
    loose("metadata", "key-twice-by-escape", 11, "an escape spells the same key", with_metadata('{"a":"b","\\u0061":"c"}'))
    both("metadata", "other-case-is-a-tensor", 18, ACCEPT, "only `__metadata__` itself is special", many(entry("__METADATA__")), 4)


def tiling():
    def placed(*places):
        return many(*(entry(chr(97 + i), shape=f"[{end - start}]", offsets=f"[{start},{end}]") for i, (start, end) in enumerate(places)))

    both("place", "two-in-order", 13, ACCEPT, "tensors tile the data", placed((0, 4), (4, 6)), 6)
    both("place", "two-out-of-order", 13, ACCEPT, "entries may stand in any order", placed((4, 6), (0, 4)), 6)
    both("place", "hole-first", 13, REJECT, "every byte belongs to a tensor", placed((1, 4)), 4)
    both("place", "hole-between", 13, REJECT, "every byte belongs to a tensor", placed((0, 4), (5, 6)), 6)
    both("place", "overlap-by-one", 13, REJECT, "no two tensors share bytes", placed((0, 4), (3, 6)), 6)
    both("place", "same-bytes-twice", 13, REJECT, "no two tensors share bytes", placed((0, 4), (0, 4)), 4)
    both("place", "one-inside-another", 13, REJECT, "no two tensors share bytes", placed((0, 4), (1, 3)), 4)
    both("place", "ends-before-it-starts", 13, REJECT, "a tensor's end is not before its start", many(entry(), entry("b", shape="[0]", offsets="[4,3]")), 4)
    both("place", "swapped-offsets", 13, REJECT, "a tensor's end is not before its start", one(offsets="[4,0]"), 4)
    for name, places in (("first", ((0, 0), (0, 4))), ("last", ((0, 4), (4, 4))), ("between", ((0, 2), (2, 2), (2, 4))), ("listed-late", ((0, 4), (0, 0))), ("alone", ((0, 0),)), ("many", ((0, 0),) * 5)):
        both("place", f"nothing-{name}", 18, ACCEPT, "a tensor without elements may stand at any boundary", placed(*places), places[-1][1] or max(end for _, end in places))
    both("place", "nothing-inside-another", 13, REJECT, "a tensor without elements stands at a boundary", placed((0, 4), (2, 2)), 4)
    both("place", "nothing-behind-the-end", 13, REJECT, "a tensor without elements stands at a boundary", placed((0, 4), (5, 5)), 4)
    both("place", "nothing-not-at-zero", 13, REJECT, "the first tensor starts at 0", placed((4, 4)), 4)
    both("place", "far-beyond-the-file", 17, REJECT, "tensors lie within the file", placed((0, 1 << 40)))
    huge = [(i << 60, (i + 1) << 60) for i in range(15)] + [(15 << 60, (1 << 64) - 1)]
    both("place", "tiles-up-to-two-to-the-64", 17, REJECT, "8 + N + the last end must not wrap", placed(*huge))


def sizes():
    for name, dtype, shape, offsets in (
        ("too-few-bytes", "F32", "[2]", "[0,4]"), ("too-many-bytes", "F32", "[1]", "[0,8]"), ("scalar-with-two", "U8", "[]", "[0,2]"), ("scalar-with-none", "U8", "[]", "[0,0]"),
        ("nothing-with-bytes", "F32", "[0]", "[0,4]"), ("something-without-bytes", "F32", "[1]", "[0,0]"), ("bytes-not-elements", "F16", "[4]", "[0,4]"),
    ):
        end = int(offsets[3:-1])
        both("size", name, 16, REJECT, "data_offsets span just what dtype and shape need", one(dtype=f'"{dtype}"', shape=shape, offsets=offsets), end)
    for name, shape in (("rows-by-columns", "[4294967296,4294967296]"), ("zero-last", "[9223372036854775808,4,0]"), ("bits", "[2305843009213693952]"), ("largest-squared", "[18446744073709551615,18446744073709551615]")):
        both("size", f"overflow-{name}", 14, REJECT, "sizes are below 2^64 bits; the crate multiplies from left to right", one(shape=shape, offsets="[0,0]"))
    both("size", "zero-first-then-huge", 14, ACCEPT, "no elements, and from left to right nothing overflows", one(shape="[0,9223372036854775808,4]", offsets="[0,0]"))
    both("size", "overflow-wraps-to-fit", 14, REJECT, "2^64 + 4 bytes are not 4", one(dtype='"F32"', shape="[4611686018427387905]"), 4)
    both("size", "largest-that-does-not-overflow", 17, REJECT, "2^61 - 1 bytes have a size, but they are not in the file", one(shape="[2305843009213693951]", offsets="[0,2305843009213693951]"))
    for name, dtype, shape, count in (
        ("f4-pair", "F4", "[2]", 1), ("f4-nothing", "F4", "[0]", 0), ("f4-three-by-two", "F4", "[3,2]", 3), ("f6-four", "F6_E2M3", "[4]", 3), ("f6-two-by-two", "F6_E3M2", "[2,2]", 3),
    ):
        both("size", name, 15, ACCEPT, "elements of 4 and 6 bits that fill their last byte", one(dtype=f'"{dtype}"', shape=shape, offsets=f"[0,{count}]"), count)
    for name, dtype, shape, count in (
        ("f4-one", "F4", "[1]", 1), ("f4-three", "F4", "[3]", 2), ("f4-scalar", "F4", "[]", 1), ("f6-one", "F6_E2M3", "[1]", 1), ("f6-three", "F6_E3M2", "[3]", 3), ("f6-two", "F6_E3M2", "[2]", 1),
    ):
        both("size", name, 15, REJECT, "elements of 4 and 6 bits fill their last byte", one(dtype=f'"{dtype}"', shape=shape, offsets=f"[0,{count}]"), count)


def files_end():
    both("end", "one-byte-more", 17, REJECT, "nothing follows the last tensor", one(), 5)
    both("end", "one-byte-less", 17, REJECT, "the file ends with the last tensor", one(), 3)
    both("end", "no-data", 17, REJECT, "the file ends with the last tensor", one())
    both("end", "empty-header-and-a-byte", 17, REJECT, "nothing follows the header if there are no tensors", "{}", 1)
    both("end", "zip-behind", 17, REJECT, "nothing follows the last tensor, so no second format can hide", one(), bytes(4) + b"PK\x05\x06" + bytes(18))


def what_is_fine():
    both("fine", "no-tensors", 18, ACCEPT, "`{}` is a file without tensors", "{}")
    both("fine", "no-tensors-padded", 18, ACCEPT, "`{}` is a file without tensors", "{}      ")
    both("fine", "scalar", 18, ACCEPT, "a shape may be empty", one(dtype='"F32"', shape="[]"), 4)
    both("fine", "rank-100", 18, ACCEPT, "a shape may have any rank", one(shape="[" + ",".join(["1"] * 99 + ["4"]) + "]"), 4)
    for name, spelling in (
        ("empty", ""), ("path", "../../etc/passwd"), ("absolute", "/etc/passwd"), ("nul", "\\u0000"), ("escape-sequence", "\\u001b[2J"), ("right-to-left", "\u202egnp.exe"),
        ("zero-width", "a\u200bb"), ("spaces", "  "), ("dots", "a..b."), ("long", "n" * 4000), ("like-json", '{\\"a\\":1}'),
    ):
        both("fine", f"name-{name}", 18, ACCEPT, "names are any text; printing them safely is the reader's business", one(name=spelling), 4)
    both("fine", "misaligned-tensor", 19, ACCEPT, "alignment is no rule", many(entry("a", shape="[1]", offsets="[0,1]"), entry("b", '"F64"', "[1]", "[1,9]")), 9)
    both("fine", "truth-values-of-7", 20, ACCEPT, "values are never looked at", one(dtype='"BOOL"'), b"\x00\x01\x07\xff")
    both("fine", "not-a-number", 20, ACCEPT, "values are never looked at", one(dtype='"F32"', shape="[1]"), b"\x01\x00\xc0\x7f")
    hf = many('"__metadata__":{"format":"pt"}', entry("w", '"F32"', "[1]", "[0,4]"), entry("a", '"F16"', "[2]", "[4,8]"), entry("b", '"F16"', "[1]", "[8,10]"))
    both("fine", "as-hugging-face-writes", 22, ACCEPT, "wide dtypes first, then by name, padded to eight bytes", hf.ljust(-len(hf) % 8 + len(hf)), 10)
    both("fine", "hundred-tensors", 13, ACCEPT, "any number of tensors", many(*(entry(f"t{i}", shape="[1]", offsets=f"[{i},{i + 1}]") for i in range(100))), 100)
    python = json.dumps({"a": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]}, "ä": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}})
    both("fine", "as-python-dumps", 22, ACCEPT, "spaces behind colons and commas, escapes for what is not ASCII", python, 4)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "testdata" / "conformance")
    for group in (files_and_lengths, text, grammar, white_space, entries, integers, dtypes, names_twice, metadata, tiling, sizes, files_end, what_is_fine):
        group()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for case, content in CASES:
        assert len(content) < 16384, case
        (folder / case["file"]).write_bytes(content)
    manifest = {
        "about": "Verdicts on these files: `compat` is what the safetensors crate 0.8.0 does, `spec` what the format's description "
        "asks for. `rule` is the row of docs/conformance.md. Written by tools/conformance/make.py.",
        "cases": [case for case, _ in CASES],
    }
    lines = json.dumps(manifest, ensure_ascii=False, indent=1)
    (folder / "manifest.json").write_text(lines + "\n", encoding="utf-8")
    print(f"{len(CASES)} files in {folder}")


if __name__ == "__main__":
    main()
