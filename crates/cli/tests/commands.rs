//! What the commands do when all is well.

mod common;

use std::fs;
use std::path::Path;

use common::{Place, changed_demo};
use safelight_diffusion::infotext::Infotext;
use safelight_format::{Dtype, TensorView};
use safelight_store::{SaveOptions, save};

fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).unwrap().into_rgb8()
}

#[test]
fn pictures_are_numbered_and_say_how_they_were_made() {
    let place = Place::new();
    let arguments = [
        "txt2img",
        "a (red:1.2) house, Zürich",
        "-n",
        "fog, 日本",
        "--steps",
        "2",
        "--size",
        "64",
        "--seed",
        "7",
        "-b",
        "2",
        "--clip-skip",
        "2",
    ];
    let ran = place.works(&arguments);
    assert_eq!(ran.stdout, "outputs/00001-7.png\noutputs/00002-8.png\n");
    assert!(
        !ran.stderr.contains('\r') && !ran.stderr.contains('█'),
        "a bar without a terminal: {:?}",
        ran.stderr
    );
    place.works(&arguments);
    assert_eq!(
        place.everything(),
        [
            "outputs",
            "outputs/00001-7.png",
            "outputs/00002-8.png",
            "outputs/00003-7.png",
            "outputs/00004-8.png"
        ]
    );
    assert_eq!(
        pixels(&place.path("outputs/00001-7.png")),
        pixels(&place.path("outputs/00003-7.png"))
    );

    let parsed = place
        .works(&["inspect", "outputs/00002-8.png", "--json"])
        .json();
    let info = Infotext::parse(parsed["parameters"].as_str().unwrap());
    assert_eq!(
        (info.prompt.as_str(), info.negative_prompt.as_str()),
        (arguments[1], arguments[3])
    );
    for (key, value) in [
        ("Steps", "2"),
        // What the demo model asks for.
        ("Sampler", "DPM++ 2M"),
        ("Schedule type", "Karras"),
        ("CFG scale", "2"),
        ("Seed", "8"),
        ("Size", "64x64"),
        ("Clip skip", "2"),
        ("Model", "demo"),
        ("RNG", "CPU"),
    ] {
        assert_eq!(info.get(key), Some(value));
        assert_eq!(parsed["parsed"]["fields"][key].as_str(), Some(value));
    }
    let text = place.works(&["inspect", "outputs/00002-8.png"]).stdout;
    assert!(
        text.contains("64 × 64") && text.contains("Sampler: DPM++ 2M"),
        "{text}"
    );
}

#[test]
fn the_second_of_a_batch_is_the_first_of_the_next_seed() {
    let place = Place::new();
    let draw = |seed: &str, batch: &str, output: &str| {
        place.works(&[
            "txt2img", "hills", "--steps", "2", "--size", "64", "--seed", seed, "-b", batch, "-o",
            output, "-q",
        ]);
    };
    draw("5", "2", "pair.png");
    draw("6", "1", "single.png");
    assert_eq!(
        pixels(&place.path("pair-2.png")),
        pixels(&place.path("single.png"))
    );
    assert_ne!(
        pixels(&place.path("pair-1.png")),
        pixels(&place.path("single.png"))
    );
}

#[test]
fn threads_change_nothing() {
    let place = Place::new();
    for threads in ["1", "3"] {
        place.works(&[
            "txt2img",
            "hills",
            "--steps",
            "2",
            "--size",
            "72x64",
            "--seed",
            "5",
            "--threads",
            threads,
            "-o",
            &format!("{threads}.png"),
        ]);
    }
    assert_eq!(pixels(&place.path("1.png")), pixels(&place.path("3.png")));
}

#[test]
fn an_empty_prompt_is_one() {
    let place = Place::new();
    let ran = place.works(&[
        "txt2img", "", "--steps", "1", "--size", "64", "--seed", "1", "-q",
    ]);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("outputs/00001-1.png\n", "")
    );
}

#[test]
fn a_random_seed_is_shown() {
    let place = Place::new();
    let ran = place.works(&["txt2img", "hills", "--steps", "1", "--size", "64", "--json"]);
    let json = ran.json();
    let seed = json["seed"].as_u64().unwrap();
    assert!(seed < 1 << 32 && ran.stderr.contains(&format!("seed {seed}")));
    let path = json["pictures"][0]["path"].as_str().unwrap();
    assert!(path.ends_with(&format!("00001-{seed}.png")) && place.path(path).is_file());
}

#[test]
fn img2img_keeps_the_size_and_little_strength_changes_little() {
    let place = Place::new();
    let before = pixels(&place.picture("house.png", 64, 72));
    let difference = |strength: &str| {
        place.works(&[
            "img2img",
            "a house",
            "-i",
            "house.png",
            "--denoise",
            strength,
            "--steps",
            "10",
            "--seed",
            "1",
            "-o",
            "out.png",
        ]);
        let after = pixels(&place.path("out.png"));
        assert_eq!(after.dimensions(), before.dimensions());
        before
            .as_raw()
            .iter()
            .zip(after.as_raw())
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum::<u64>()
    };
    assert!(difference("0.1") < difference("1"));
}

#[test]
fn inpainting_leaves_black_alone() {
    let place = Place::new();
    let before = pixels(&place.picture("house.png", 72, 70));
    place.mask("mask.png", 72, 70);
    let draw = |extra: &[&str]| {
        let arguments = [
            "inpaint",
            "a boat",
            "-i",
            "house.png",
            "-m",
            "mask.png",
            "--steps",
            "3",
            "--seed",
            "1",
            "-o",
            "out.png",
        ];
        place.works(&arguments.iter().chain(extra).copied().collect::<Vec<_>>());
        let after = pixels(&place.path("out.png"));
        assert_eq!(after.dimensions(), before.dimensions());
        after
    };
    let changed = |after: &image::RgbImage, columns: std::ops::Range<u32>| {
        columns
            .flat_map(|x| (0..70).map(move |y| (x, y)))
            .filter(|&(x, y)| after.get_pixel(x, y) != before.get_pixel(x, y))
            .count()
    };
    let after = draw(&[]);
    assert_eq!(changed(&after, 0..20), 0, "far from the mask");
    assert!(changed(&after, 52..72) > 600);
    let after = draw(&["--invert-mask", "--mask-blur", "0"]);
    assert_eq!(changed(&after, 36..72), 0);
    assert!(changed(&after, 0..36) > 1000);
}

#[test]
fn outpainting_adds_and_keeps() {
    let place = Place::new();
    let before = pixels(&place.picture("house.png", 64, 64));
    place.works(&[
        "outpaint",
        "hills",
        "-i",
        "house.png",
        "--left",
        "24",
        "--down",
        "8",
        "--steps",
        "3",
        "--seed",
        "1",
        "-o",
        "out.png",
    ]);
    let after = pixels(&place.path("out.png"));
    assert_eq!(after.dimensions(), (88, 72));
    for (x, y) in (24..64).flat_map(|x| (0..40).map(move |y| (x, y))) {
        assert_eq!(
            after.get_pixel(x + 24, y),
            before.get_pixel(x, y),
            "{x},{y}"
        );
    }
}

#[test]
fn a_model_in_the_folder_is_found_listed_and_used() {
    let place = Place::new();
    changed_demo(
        &place.path("models/Stable-diffusion/meadow.safetensors"),
        |_| true,
    );
    place.write("models/Stable-diffusion/broken.safetensors", b"<html>");
    let table = place.works(&["models"]).stdout;
    for word in [
        "meadow",
        "SD 1.x",
        "text encoder + UNet + VAE",
        "web page",
        "demo",
    ] {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    let listed = place.works(&["models", "--json"]).json();
    let meadow = listed["models"]
        .as_array()
        .unwrap()
        .iter()
        .find(|model| model["name"] == "meadow")
        .unwrap();
    let hash = meadow["hash"].as_str().unwrap();
    assert_eq!((hash.len(), meadow["usable"].as_bool()), (10, Some(true)));
    for query in [
        None,
        Some("mea"),
        Some(hash),
        Some("models/Stable-diffusion/meadow.safetensors"),
    ] {
        let model = query.map_or(vec![], |query| vec!["--model", query]);
        let arguments = ["txt2img", "hills", "--steps", "1", "--size", "64", "--json"];
        let used = place
            .works(&arguments.into_iter().chain(model).collect::<Vec<_>>())
            .json();
        assert_eq!(used["model"]["name"].as_str(), Some("meadow"), "{query:?}");
        assert_eq!(used["model"]["hash"].as_str(), Some(hash));
    }
}

#[test]
fn inspect_tells_models_and_folders() {
    let place = Place::new();
    let path = place.path("models/meadow.safetensors");
    changed_demo(&path, |_| true);
    let text = place
        .works(&["inspect", "models/meadow.safetensors", "--tensors"])
        .stdout;
    for word in [
        "SD 1.x",
        "UNet",
        "parameters",
        "SHA-256",
        "modelspec.title: Safelight demo",
        "model.diffusion_model.out.2.bias",
        "usable",
    ] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    let json = place
        .works(&[
            "inspect",
            "models/meadow.safetensors",
            "--tensors",
            "--json",
        ])
        .json();
    assert_eq!(
        json["tensor_count"].as_u64().map(|count| count as usize),
        json["tensors"].as_array().map(Vec::len)
    );
    assert_eq!(json["metadata"]["modelspec.title"], "Safelight demo");
    let folder = place.works(&["inspect", "models"]).stdout;
    assert!(
        folder.contains("1 checkpoint")
            && folder.contains("meadow")
            && !folder.contains("built in"),
        "{folder}"
    );
    assert!(fs::metadata(path).is_ok());
}

#[test]
fn help_has_examples_and_shells_have_completions() {
    let place = Place::new();
    let help = place.works(&["--help"]).stdout;
    assert!(
        help.contains("Examples:") && help.contains("Exit codes"),
        "{help}"
    );
    for command in [
        "txt2img",
        "img2img",
        "inpaint",
        "outpaint",
        "models",
        "inspect",
        "bench",
        "completions",
    ] {
        assert!(help.contains(command));
        let own = place.works(&[command, "--help"]).stdout;
        assert!(own.contains("Example"), "{own}");
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(
            place
                .works(&["completions", shell])
                .stdout
                .contains("txt2img")
        );
    }
    assert!(place.works(&["--version"]).stdout.starts_with("safelight "));
}

#[test]
fn bench_measures_every_part() {
    let place = Place::new();
    let json = place
        .works(&["bench", "--size", "64", "--repeat", "1", "--json"])
        .json();
    for part in [
        "load",
        "text_encoder",
        "unet",
        "unet_with_guidance",
        "vae_decoder",
        "vae_encoder",
    ] {
        assert!(
            json["parts"][part]["median_s"].as_f64().unwrap() > 0.0,
            "{part}"
        );
    }
}

#[test]
fn bench_measures_one_part() {
    let place = Place::new();
    for part in ["unet", "vae", "text", "load"] {
        let arguments = [
            "bench", part, "--latent", "4x6", "--batch", "2", "--repeat", "2",
        ];
        let json = place
            .works(&[&arguments[..], &["--json", "--profile"]].concat())
            .json();
        assert!(json["median_s"].as_f64().unwrap() > 0.0, "{json}");
        assert_eq!(json["seconds"].as_array().unwrap().len(), 2);
        if part != "load" {
            assert!(
                json["profile"]["linear"]["flops"].as_u64().unwrap() > 0,
                "{json}"
            );
        }
        let text = place
            .works(&[&arguments[..], &["--profile"]].concat())
            .stdout;
        assert!(
            text.contains("median of 2") && text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
    // Attention between 4 × 6 and 77 tokens and the rest of a pass grow with the batch.
    let flops = |batch| {
        let arguments = [
            "bench",
            "unet",
            "--latent",
            "4x6",
            "--repeat",
            "1",
            "--json",
            "--profile",
            "--batch",
            batch,
        ];
        let profile = place.works(&arguments).json()["profile"].take();
        profile["conv 3x3"]["flops"].as_u64().unwrap()
    };
    assert_eq!(flops("3"), 3 * flops("1"));
    place.refuses(&["bench", "unet", "--latent", "0x1"], 2, &["--latent"]);
    place.refuses(&["bench", "--batch", "2"], 2, &["PART"]);
}

#[test]
fn bench_measures_a_whole_drawing() {
    let place = Place::new();
    let arguments = [
        "bench", "txt2img", "--size", "64", "--steps", "3", "--batch", "2", "--repeat", "2",
    ];
    let json = place.works(&[&arguments[..], &["--json"]].concat()).json();
    let seconds = |value: &serde_json::Value| value.as_f64().expect("a number");
    let total = seconds(&json["median_s"]);
    let stages = ["load", "text", "steps", "decode"].map(|stage| seconds(&json["stages"][stage]));
    assert!(stages.iter().all(|stage| *stage > 0.0), "{json}");
    // Medians of two are the slower ones, of each stage and of the whole.
    let slowest: f64 = json["seconds"]
        .as_array()
        .unwrap()
        .iter()
        .map(seconds)
        .sum();
    assert!(
        total <= slowest && stages.iter().sum::<f64>() <= slowest,
        "{json}"
    );
    assert!(
        (seconds(&json["step_s"]) * 6.0 - stages[2]).abs() < 1e-9,
        "{json}"
    );
    assert_eq!(
        (json["steps"].as_u64(), json["batch"].as_u64()),
        (Some(3), Some(2))
    );
    let text = place.works(&arguments).stdout;
    assert!(
        text.contains("a step") && text.contains("median of 2"),
        "{text}"
    );

    place.refuses(
        &["bench", "unet", "--steps", "3"],
        2,
        &["--steps", "txt2img"],
    );
    place.refuses(
        &["bench", "txt2img", "--profile"],
        2,
        &["--profile", "unet"],
    );
    for part in [
        &[][..],
        &["vae"],
        &["text"],
        &["txt2img"],
        &["load"],
        &["fidelity"],
    ] {
        let arguments = [&["bench"], part, &["--family", "sdxl"]].concat();
        place.refuses(&arguments, 2, &["SDXL", "bench unet --family sdxl"]);
    }
    place.refuses(
        &["bench", "unet", "--family", "sdxl", "--steps", "3"],
        2,
        &["--steps"],
    );
    place.refuses(&["bench", "unet", "--family", "sd3"], 2, &["sd15", "sdxl"]);
}

#[cfg(unix)]
#[test]
fn signals_end_between_steps_and_leave_nothing() {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    // Ctrl-C, what `kill` and service managers send, and what a closed terminal sends.
    for signal in ["-INT", "-TERM", "-HUP"] {
        let place = Place::new();
        let mut child = place
            .command(&["txt2img", "hills", "--steps", "999", "--seed", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be interrupted"
        );
        assert!(
            Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let ran = common::Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert!(ran.stderr.contains("interrupted"), "{}", ran.stderr);
        assert!(place.everything().is_empty(), "{:?}", place.everything());
    }
}

#[test]
fn another_vae_is_named_in_the_picture() {
    let place = Place::new();
    let vae = place.path("vae/soft.safetensors");
    changed_demo(&vae, |stored| stored.name.starts_with("first_stage_model."));
    let vae_hash = safelight_catalog::sha256_hex(&fs::read(&vae).unwrap());
    let ran = place.works(&[
        "txt2img",
        "hills",
        "--steps",
        "1",
        "--size",
        "64",
        "--vae",
        "vae/soft.safetensors",
        "--json",
    ]);
    let json = ran.json();
    let parameters = json["pictures"][0]["parameters"].as_str().unwrap();
    let expected = format!(
        "Model: demo, VAE hash: {}, VAE: soft.safetensors, ",
        &vae_hash[..10]
    );
    assert!(parameters.contains(&expected), "{parameters}");
}

#[test]
fn help_offers_what_the_job_takes() {
    let place = Place::new();
    let outpaint = place.works(&["outpaint", "--help"]).stdout;
    for flag in ["--size", "--width", "--height"] {
        assert!(!outpaint.contains(flag), "{outpaint}");
        assert!(place.works(&["inpaint", "--help"]).stdout.contains(flag));
    }
    assert!(outpaint.contains("--left"));
    // Flags that trade fidelity for time stand apart, and no others with them.
    let (usual, shortcuts) = outpaint.split_once("trade fidelity for time").unwrap();
    for flag in [
        "--cfg-start",
        "--cache-interval",
        "--token-merging-ratio",
        "--tiny-vae",
    ] {
        assert!(
            shortcuts.contains(flag) && !usual.contains(flag),
            "{outpaint}"
        );
    }
    for flag in ["--model", "--output", "--left"] {
        assert!(
            usual.contains(flag) && !shortcuts.contains(&format!("{flag} <")),
            "{outpaint}"
        );
    }
}

#[test]
fn a_trace_is_a_safetensors_file_of_every_step() {
    let place = Place::new();
    let arguments = [
        "txt2img",
        "hills",
        "--steps",
        "2",
        "--size",
        "64",
        "--seed",
        "7",
        "--trace",
        "way.safetensors",
    ];
    place.works(&arguments);
    let listed = place
        .works(&["inspect", "way.safetensors", "--tensors"])
        .stdout;
    for name in [
        "text.positive",
        "text.negative",
        "noise",
        "start",
        "step.1",
        "step.2",
        "latent",
    ] {
        assert!(listed.contains(name), "{name} in {listed}");
    }
    place.refuses(&arguments, 2, &["way.safetensors", "exists"]);
}

#[test]
fn without_overlay_the_whole_picture_is_drawn() {
    let place = Place::new();
    place.picture("in.png", 64, 64);
    place.mask("mask.png", 64, 64);
    let arguments = [
        "inpaint", "hills", "-i", "in.png", "-m", "mask.png", "--steps", "2", "--seed", "7", "-o",
    ];
    place.works(&[&arguments[..], &["with.png"]].concat());
    place.works(&[&arguments[..], &["without.png", "--no-overlay"]].concat());
    let [old, with, without] =
        ["in.png", "with.png", "without.png"].map(|name| pixels(&place.path(name)));
    assert_eq!(old[(0, 0)], with[(0, 0)]);
    let same = old
        .pixels()
        .zip(without.pixels())
        .filter(|(a, b)| a == b)
        .count();
    assert!(same < 400, "{same} of 4096 pixels are the old ones");
}

#[test]
fn the_built_in_model_is_written_out_as_an_ordinary_checkpoint() {
    let place = Place::new();
    let ran = place.works(&["models", "--export-demo", "demo.safetensors"]);
    assert!(
        ran.stdout.starts_with("demo.safetensors, "),
        "{}",
        ran.stdout
    );
    place.works(&["lint", "demo.safetensors"]);
    let written = fs::read(place.path("demo.safetensors")).unwrap();

    // It draws what the one inside draws.
    let draw = |output, model: &[&str]| {
        let request = [
            "txt2img", "a tree", "--steps", "1", "--size", "64", "--seed", "3", "-o",
        ];
        place.works(&[&request[..], &[output], model].concat());
        pixels(&place.path(output))
    };
    let inside = draw("inside.png", &["--model", "demo"]);
    assert_eq!(
        draw("outside.png", &["--model", "./demo.safetensors"]),
        inside
    );

    let there = ["is there already", "--force"];
    place.refuses(&["models", "--export-demo", "demo.safetensors"], 2, &there);
    place.write("demo.safetensors", b"something else");
    let again = [
        "models",
        "--export-demo",
        "demo.safetensors",
        "--force",
        "--json",
    ];
    assert_eq!(place.works(&again).json()["bytes"], written.len());
    assert_eq!(fs::read(place.path("demo.safetensors")).unwrap(), written);
    place.refuses(
        &["models", "--export-demo", "missing/demo.safetensors"],
        1,
        &["missing"],
    );
}

#[test]
fn shortcuts_are_in_the_picture_and_in_json() {
    let place = Place::new();
    let draw = |extra: &[&str]| {
        let usual = [
            "txt2img", "hills", "--steps", "4", "--size", "64", "--seed", "1", "--json",
        ];
        let arguments: Vec<&str> = usual.iter().chain(extra).copied().collect();
        let json = place.works(&arguments).json();
        let text = json["pictures"][0]["parameters"].as_str().unwrap();
        (Infotext::parse(text), json)
    };
    let (info, json) = draw(&["--cfg-start", "0.25", "--cfg-end", "0.75"]);
    assert_eq!(info.get("Skip Early CFG"), Some("0.25"));
    assert_eq!(info.get("CFG end"), Some("0.75"));
    assert_eq!(json["shortcuts"]["cfg_start"], 0.25);
    // Of calls 0 to 3 only call 2 is guided: A1111 skips those up to and with a quarter.
    assert_eq!(json["pictures"][0]["unet_passes"]["full"], 5);
    let (info, json) = draw(&[]);
    assert_eq!(
        (info.get("Skip Early CFG"), info.get("CFG end")),
        (None, None)
    );
    assert_eq!(json["pictures"][0]["unet_passes"]["full"], 8);
    let (info, _) = draw(&[
        "--cfg-start",
        "0.25",
        "--flavour",
        "diffusers",
        "--sampler",
        "Euler",
    ]);
    assert_eq!(
        (info.get("CFG start"), info.get("Skip Early CFG")),
        (Some("0.25"), None)
    );
    let (info, json) = draw(&["--cache-interval", "3", "--cache-branch", "1"]);
    assert_eq!(info.get("DeepCache interval"), Some("3"));
    assert_eq!(info.get("DeepCache branch"), Some("1"));
    let passes = &json["pictures"][0]["unet_passes"];
    assert_eq!((&passes["full"], &passes["cached"]), (&4.into(), &4.into()));
    place.refuses(
        &[
            "txt2img",
            "x",
            "--cache-interval",
            "2",
            "--cache-branch",
            "99",
        ],
        2,
        &["cache branch is 99", "skip connections"],
    );
    let (info, json) = draw(&["--token-merging-ratio", "0.5"]);
    assert_eq!(info.get("Token merging ratio"), Some("0.5"));
    assert_eq!(json["shortcuts"]["token_merging_ratio"], 0.5);
    place.refuses(
        &["txt2img", "x", "--token-merging-ratio", "0.8"],
        2,
        &["--token-merging-ratio", "from 0 to 0.75"],
    );
    place.refuses(
        &["txt2img", "x", "--cfg-start", "0.5", "--cfg-end", "0.4"],
        2,
        &["guidance start is 0.5", "at most 0.4"],
    );
    place.refuses(
        &["txt2img", "x", "--cfg-end", "1.5"],
        2,
        &["--cfg-end", "from 0 to 1"],
    );
}

/// A tiny decoder of random-looking weights, `width` wide, numbered as `taesd_decoder.safetensors` is.
fn tiny_decoder(place: &Place, name: &str, width: u64) {
    let mut tensors: Vec<(String, Vec<u64>)> = Vec::new();
    let mut layer = |name: String, outputs: u64, inputs: u64, bias: bool| {
        tensors.push((format!("{name}.weight"), vec![outputs, inputs, 3, 3]));
        if bias {
            tensors.push((format!("{name}.bias"), vec![outputs]));
        }
    };
    layer("1".into(), width, 4, true);
    let blocks = [3, 4, 5, 8, 9, 10, 13, 14, 15, 18];
    for (block, conv) in blocks
        .into_iter()
        .flat_map(|block| [0, 2, 4].map(|conv| (block, conv)))
    {
        layer(format!("{block}.conv.{conv}"), width, width, true);
    }
    for conv in [7, 12, 17] {
        layer(conv.to_string(), width, width, false);
    }
    layer("19".into(), 3, width, true);
    let mut value = 0_u32;
    let mut next = |_| {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (value >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            (name, shape, common::floats((0..count).map(&mut next)))
        })
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView {
            name,
            dtype: Dtype::F32,
            shape,
            bytes,
        })
        .collect();
    let path = place.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    save(&path, &views, None, &SaveOptions::default()).unwrap();
}

#[test]
fn a_tiny_decoder_is_named_or_found() {
    let place = Place::new();
    let draw = |extra: &[&str]| {
        let usual = [
            "txt2img", "hills", "--steps", "1", "--size", "64", "--seed", "1", "--json",
        ];
        let arguments: Vec<&str> = usual.iter().chain(extra).copied().collect();
        let json = place.works(&arguments).json();
        let text = json["pictures"][0]["parameters"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = json["pictures"][0]["path"].as_str().unwrap().to_owned();
        (pixels(&place.path(&path)), text, json)
    };
    place.refuses(
        &["txt2img", "hills", "--tiny-vae"],
        2,
        &["taesd_decoder.safetensors", "--tiny-vae=FILE"],
    );
    place.refuses(
        &["txt2img", "hills", "--tiny-vae=none.safetensors"],
        3,
        &["none.safetensors"],
    );
    tiny_decoder(&place, "models/VAE-approx/taesd_decoder.safetensors", 4);
    let (plain, text, json) = draw(&[]);
    assert!(!text.contains("VAE Decoder"), "{text}");
    assert!(json["shortcuts"]["tiny_vae"].is_null());
    let (found, text, json) = draw(&["--tiny-vae"]);
    assert!(text.contains(", VAE Decoder: TAESD, Version"), "{text}");
    assert_eq!(
        json["shortcuts"]["tiny_vae"],
        "models/VAE-approx/taesd_decoder.safetensors"
    );
    assert_ne!(found, plain);
    let (named, ..) = draw(&["--tiny-vae=models/VAE-approx/taesd_decoder.safetensors"]);
    assert_eq!(named, found);
    // What lies there is no checkpoint of its own.
    let listed = place.works(&["models", "--no-hash"]).stdout;
    assert!(!listed.contains("taesd"), "{listed}");
}

#[test]
fn fidelity_is_told_for_the_precision_asked_for() {
    let place = Place::new();
    let arguments = [
        "bench",
        "fidelity",
        "--size",
        "64",
        "--steps",
        "1",
        "--precision",
        "bf16",
        "--json",
    ];
    let answer = place.works(&arguments).json();
    let [precision] = answer["precisions"].as_array().unwrap().as_slice() else {
        panic!("{answer}")
    };
    assert_eq!(precision["precision"], "bf16");
    let outputs = precision["outputs"].as_array().unwrap();
    let cosines = outputs
        .iter()
        .map(|found| found["cosine"].as_f64().unwrap());
    // Alike, but not the very same: then nothing was rounded.
    assert!(
        outputs.len() == 8 && cosines.clone().all(|cosine| cosine > 0.999 && cosine < 1.0),
        "{answer}"
    );
    assert_eq!(precision["pictures"].as_array().unwrap().len(), 3);
}
