//! Everything that can be wrong with what is given: one message, the right exit code, nothing written.

mod common;

use std::fs;

use common::{Place, changed_demo};
use safelight_format::Dtype;

const QUICK: [&str; 6] = ["--steps", "1", "--size", "64", "--seed", "1"];

fn txt2img<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    ["txt2img", "a house"]
        .iter()
        .chain(&QUICK)
        .chain(extra)
        .copied()
        .collect()
}

#[test]
fn files_that_are_no_model_are_called_what_they_are() {
    let zip = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\x10\0\0\0\x10\0\0\0archive/data.pkl\x80\x02}q\0.".as_slice();
    let cases: [(&str, &[u8], &str); 7] = [
        ("empty", b"", "empty"),
        ("zip", zip, "PyTorch"),
        (
            "pickle",
            b"\x80\x02}q\x00X\x05\x00\x00\x00helloq\x01K\x01s.",
            "pickle",
        ),
        (
            "html",
            b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
            "web page",
        ),
        (
            "lfs",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
            "Git LFS",
        ),
        (
            "gguf",
            b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
            "GGUF",
        ),
        (
            "noise",
            b"\x13\x37\xff\xee\xdd\xcc\xbb\xaa\x99\x88\x77\x66",
            "bytes",
        ),
    ];
    let place = Place::new();
    for (name, bytes, word) in cases {
        let path = place.write(&format!("models/{name}.safetensors"), bytes);
        let file = format!("{name}.safetensors");
        place.refuses(
            &txt2img(&["--model", path.to_str().unwrap()]),
            3,
            &[word, &file],
        );
        place.refuses(&txt2img(&["--model", name]), 3, &[word, &file]);
        place.refuses(&["inspect", path.to_str().unwrap()], 3, &[word, &file]);
    }
    let listed = place.works(&["models", "--json"]).json();
    assert_eq!(
        listed["models"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|model| model["usable"] == false)
            .count(),
        cases.len()
    );
}

#[test]
fn a_truncated_model_is_refused_with_its_numbers() {
    let place = Place::new();
    let path = place.path("models/cut.safetensors");
    changed_demo(&path, |_| true);
    let whole = fs::read(&path).unwrap();
    for length in [4, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        place.refuses(
            &txt2img(&["--model", "cut"]),
            3,
            &["cut.safetensors", &length.to_string()],
        );
    }
}

#[test]
fn models_of_other_families_are_refused_by_name() {
    let place = Place::new();
    for (name, tensor, shape, word) in [
        (
            "xl",
            "conditioner.embedders.1.model.ln_final.bias",
            vec![1280],
            "SDXL",
        ),
        (
            "flux",
            "double_blocks.0.img_attn.norm.key_norm.scale",
            vec![128],
            "Flux",
        ),
        (
            "lora",
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            vec![4, 320],
            "LoRA",
        ),
    ] {
        let path = place.path(&format!("models/{name}.safetensors"));
        let mut first = true;
        changed_demo(&path, |stored| {
            stored.name = tensor.into();
            stored.dtype = Dtype::F16;
            stored.shape = shape.clone();
            stored.bytes = vec![0; 2 * shape.iter().product::<u64>() as usize];
            std::mem::take(&mut first)
        });
        place.refuses(&txt2img(&["--model", name]), 3, &[word, tensor, "SD 1.x"]);
    }
}

#[test]
fn missing_tensors_are_listed_all_at_once() {
    let place = Place::new();
    let path = place.path("models/holes.safetensors");
    let gone = [
        "model.diffusion_model.time_embed.0.bias",
        "first_stage_model.post_quant_conv.weight",
        "model.diffusion_model.out.2.weight",
    ];
    changed_demo(&path, |stored| !gone.contains(&stored.name.as_str()));
    place.refuses(
        &txt2img(&["--model", "holes"]),
        3,
        &[gone[0], gone[1], gone[2], "3"],
    );
}

#[test]
fn wrong_shapes_are_refused_with_both() {
    let place = Place::new();
    let path = place.path("models/bent.safetensors");
    let bent = "model.diffusion_model.time_embed.2.bias";
    let mut length = 0;
    changed_demo(&path, |stored| {
        if stored.name == bent {
            length = stored.shape[0];
            stored.shape[0] -= 1;
            stored
                .bytes
                .truncate(stored.bytes.len() * (length as usize - 1) / length as usize);
        }
        true
    });
    place.refuses(
        &txt2img(&["--model", "bent"]),
        3,
        &[bent, &format!("[{}]", length - 1), &format!("[{length}]")],
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let place = Place::new();
    let path = place.path("models/nan.safetensors");
    changed_demo(&path, |stored| {
        if stored.name.contains("input_blocks.0.0.weight") {
            // All bits set is NaN in every float.
            stored.bytes.fill(0xff);
        }
        true
    });
    place.refuses(
        &txt2img(&["--model", "nan"]),
        3,
        &["model.diffusion_model.input_blocks.0.0.weight", "NaN"],
    );
}

#[test]
fn models_that_are_not_there_are_told_from_those_that_are() {
    let place = Place::new();
    changed_demo(
        &place.path("models/checkpoints/meadow_v1.safetensors"),
        |_| true,
    );
    place.write("models/checkpoints/meadow_v2.safetensors", b"");
    place.refuses(
        &txt2img(&["--model", "meadov_v1"]),
        3,
        &["meadov_v1", "did you mean `meadow_v1`"],
    );
    place.refuses(
        &txt2img(&["--model", "qqqqqqq"]),
        3,
        &["qqqqqqq", "checkpoints/meadow_v1", "demo"],
    );
    place.refuses(
        &txt2img(&["--model", "meadow"]),
        3,
        &["meadow_v1", "meadow_v2"],
    );
    place.refuses(&txt2img(&["--models", "nowhere"]), 2, &["nowhere"]);
    place.refuses(&["models", "--models", "nowhere"], 2, &["nowhere"]);
}

#[test]
fn a_mask_must_fit_its_picture() {
    let place = Place::new();
    place.picture("house.png", 64, 64);
    place.mask("mask.png", 64, 32);
    let arguments = [
        "inpaint",
        "a boat",
        "-i",
        "house.png",
        "-m",
        "mask.png",
        "--steps",
        "1",
    ];
    place.refuses(&arguments, 4, &["mask.png", "64×32", "64×64"]);
}

#[test]
fn pictures_that_are_none_are_called_what_they_are() {
    let place = Place::new();
    place.write("page.png", b"<!DOCTYPE html><html></html>");
    place.write("empty.png", b"");
    place.write("text.png", b"just some words");
    let whole = fs::read(place.picture("whole.png", 64, 64)).unwrap();
    place.write("cut.png", &whole[..whole.len() / 2]);
    for (file, word) in [
        ("page.png", "web page"),
        ("empty.png", "empty"),
        ("text.png", "not a PNG"),
        ("cut.png", "damaged"),
        ("none.png", "none.png"),
        (".", "folder"),
    ] {
        place.refuses(
            &["img2img", "a house", "-i", file, "--steps", "1"],
            4,
            &[word],
        );
    }
}

#[test]
fn odd_sizes_are_rounded_down_and_giants_refused() {
    let place = Place::new();
    let ran = place.works(&[
        "txt2img", "a house", "--steps", "1", "--size", "71x66", "--json",
    ]);
    assert!(
        ran.stderr.contains("71×66 is rounded down to 64×64"),
        "{}",
        ran.stderr
    );
    let picture = &ran.json()["pictures"][0];
    assert_eq!(
        (picture["width"].as_u64(), picture["height"].as_u64()),
        (Some(64), Some(64))
    );

    let place = Place::new();
    place.refuses(
        &["txt2img", "a house", "--size", "16384x16384"],
        2,
        &["16384×16384", "memory", "GB"],
    );
    place.refuses(
        &["txt2img", "a house", "--size", "4000000000x4000000000"],
        2,
        &["4000000000"],
    );
    place.refuses(&["txt2img", "a house", "--size", "0x64"], 2, &["0"]);
    place.refuses(&["txt2img", "a house", "--size", "7x64"], 2, &["7"]);
}

#[test]
fn wrong_requests_are_refused() {
    let place = Place::new();
    place.picture("house.png", 64, 64);
    place.refuses(&["outpaint", "hills", "-i", "house.png"], 2, &["--left"]);
    place.refuses(
        &[
            "outpaint",
            "hills",
            "-i",
            "house.png",
            "--left",
            "64",
            "--size",
            "64",
        ],
        2,
        &["size"],
    );
    place.refuses(
        &[
            "outpaint",
            "hills",
            "-i",
            "house.png",
            "--left",
            "4000000000",
        ],
        2,
        &["4000000064", "16384"],
    );
    place.refuses(&["img2img", "a house"], 2, &["--image"]);
    place.refuses(&["txt2img"], 2, &["PROMPT"]);
    place.refuses(&txt2img(&["--sampler", "Eulr"]), 2, &["DPM++ 2M"]);
    place.refuses(&txt2img(&["--precision", "int3"]), 2, &["f32"]);
    place.refuses(&["txt2img", "a", "--steps", "-3"], 2, &["steps"]);
    place.refuses(&["draw"], 2, &["draw"]);
    place.refuses(&txt2img(&["-o", "cat.jpg"]), 2, &["cat.jpg", ".png"]);
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let place = Place::new();
    let output = place
        .command(&txt2img(&[]))
        .env("SAFELIGHT_CPU", "abacus")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("abacus") && stderr.contains("avx2"),
        "{stderr}"
    );
    assert!(place.everything().is_empty());
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_work() {
    let place = Place::new();
    place.write("file", b"");
    place.refuses(&txt2img(&["-o", "file/inside/"]), 1, &["file", "-o"]);
    place.refuses(&txt2img(&["-o", "file/picture.png"]), 1, &["file", "-o"]);
}

#[test]
fn machines_get_errors_as_json() {
    let place = Place::new();
    let ran = place.refuses(
        &txt2img(&["--model", "nothing-like-it", "--json"]),
        3,
        &["nothing-like-it"],
    );
    let error = &ran.json()["error"];
    assert_eq!(
        (error["kind"].as_str(), error["exit_code"].as_u64()),
        (Some("model"), Some(3))
    );
}

#[test]
fn arguments_that_cannot_be_read_are_json_too() {
    let place = Place::new();
    for arguments in [
        ["txt2img", "--json", "a", "--steps", "0"].as_slice(),
        &["models", "--json", "--nonsense"],
    ] {
        let error = place.refuses(arguments, 2, &["--"]).json()["error"].clone();
        assert_eq!(
            (error["kind"].as_str(), error["exit_code"].as_u64()),
            (Some("usage"), Some(2))
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
    }
    place.refuses(&txt2img(&["--threads", "-1"]), 2, &["-1", "1..=1024"]);
}

#[test]
fn endless_prompts_are_refused_before_the_model_is_read() {
    let place = Place::new();
    let breaks = "BREAK ".repeat(10_000);
    let arguments = ["txt2img", &breaks, "--size", "64", "--steps", "1"];
    place.refuses(&arguments, 2, &["10000 chunks of 75 tokens", "at most 64"]);
    let long = "a ".repeat(40_000);
    let arguments = ["txt2img", "a", "-n", &long, "--size", "64", "--steps", "1"];
    place.refuses(&arguments, 2, &["negative prompt", "80000 bytes", "65536"]);
}

#[test]
fn names_that_mean_nothing_are_told_apart() {
    let place = Place::new();
    place.write("empty.png", b"");
    place.refuses(&["inspect", "empty.png"], 4, &["empty.png", "is empty"]);
    place.refuses(
        &["models", "--models", "empty.png"],
        2,
        &["empty.png", "is a file, not a folder"],
    );
    place.refuses(&txt2img(&["--model", ""]), 2, &["no model is named"]);
    place.refuses(&txt2img(&["-o", "-"]), 2, &["standard output"]);
    let long = "x".repeat(300) + ".png";
    place.refuses(&txt2img(&["-o", &long]), 1, &[&long]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_process_counts_as_memory() {
    use std::process::Command;

    let place = Place::new();
    let binary = env!("CARGO_BIN_EXE_safelight");
    let script = format!("ulimit -v 900000; exec '{binary}' txt2img a --size 1024 --steps 1");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(place.path("."))
        .output()
        .unwrap();
    let ran = common::Ran::of(output);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("of memory"), "{}", ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn pictures_written_before_the_disk_was_full_are_named() {
    use std::process::Command;

    let place = Place::new();
    let binary = env!("CARGO_BIN_EXE_safelight");
    // The second picture's name is taken by a folder, which nothing can be renamed over.
    fs::create_dir(place.path("cat-2.png")).unwrap();
    let ran = place.run(&txt2img(&["-b", "3", "-o", "cat.png"]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(ran.stdout, "./cat-1.png\n");
    assert!(
        ran.stderr.contains("cat-2.png") && ran.stderr.contains("1 picture written before"),
        "{}",
        ran.stderr
    );
    let ran = place.run(&txt2img(&["-b", "3", "-o", "cat.png", "--json"]));
    assert_eq!(ran.json()["written"][0], "./cat-1.png");
    assert_eq!(place.everything(), ["cat-1.png", "cat-2.png"]);

    let script = format!("'{binary}' --help > /dev/full");
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
