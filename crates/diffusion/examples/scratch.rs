use safelight_diffusion::{nn::*, unet::*, vae::*};
use safelight_tensor::Tensor;
use std::time::Instant;
fn rss() -> String {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS"))
        .collect::<Vec<_>>()
        .join(" ")
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let what = std::env::args().nth(1).unwrap();
    let size: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let n: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let t = Instant::now();
    let mut times = std::collections::BTreeMap::<String, f64>::new();
    if what.ends_with(".safetensors") {
        let m = safelight_diffusion::load::Model::load(what.as_ref(), &Default::default())
            .unwrap_or_else(|e| panic!("{e}"));
        println!(
            "load wall {:.2} cpu {:.2} {}",
            t.elapsed().as_secs_f64(),
            cpu(),
            rss()
        );
        let ctx = m.text.forward(&[49406, 320, 1125, 49407], 1);
        let x = Tensor::from_vec(
            &[1, size, size, 4],
            (0..size * size * 4).map(|i| (i as f32).sin()).collect(),
        );
        let y = m.unet.forward(&x, &[999.0], &ctx);
        println!("step {} {:?}", rss(), &y.data()[..2]);
        let c = cpu();
        let p = m.vae.decode(&y);
        println!(
            "decode cpu/2 {:.2} {} {:?}",
            (cpu() - c) / 2.0,
            rss(),
            &p.data()[..2]
        );
        return;
    }
    if what == "unet" {
        let unet = UNet::load(&RandomWeights { seed: 1 }, UNetConfig::sd15()).unwrap();
        println!("load {:.2} {}", t.elapsed().as_secs_f64(), rss());
        let ctx = Tensor::from_vec(
            &[1, 77, 768],
            (0..77 * 768).map(|i| (i as f32).sin()).collect(),
        );
        let x = Tensor::from_vec(
            &[1, size, size, 4],
            (0..size * size * 4).map(|i| (i as f32).sin()).collect(),
        );
        let text = unet.prepare(&ctx);
        for _ in 0..n {
            let t = Instant::now();
            let mut last = cpu();
            let start = last;
            let mut see = |name: &str, _: &Tensor| {
                *times.entry(name.to_string()).or_default() += cpu() - last;
                last = cpu();
            };
            let y = unet.forward_prepared(&x, &[500.0], &text, &mut Trace::to(&mut see));
            println!(
                "forward cpu/2 {:.2} wall {:.3} {} {:?}",
                (cpu() - start) / 2.0,
                t.elapsed().as_secs_f64(),
                rss(),
                &y.data()[..2]
            );
        }
    } else {
        let vae = Vae::load(&RandomWeights { seed: 1 }, VaeConfig::sd15()).unwrap();
        println!("load {:.2} {}", t.elapsed().as_secs_f64(), rss());
        let x = Tensor::from_vec(
            &[1, size, size, 4],
            (0..size * size * 4).map(|i| (i as f32).sin()).collect(),
        );
        for _ in 0..n {
            let t = Instant::now();
            let mut last = cpu();
            let start = last;
            let mut see = |name: &str, _: &Tensor| {
                *times.entry(name.to_string()).or_default() += cpu() - last;
                last = cpu();
            };
            let y = vae.decode_traced(&x, &mut Trace::to(&mut see));
            println!(
                "decode cpu/2 {:.2} wall {:.3} {} {:?}",
                (cpu() - start) / 2.0,
                t.elapsed().as_secs_f64(),
                rss(),
                &y.data()[..2]
            );
        }
    }
    for (k, v) in times {
        println!("{k:40} {:.3}", v / n as f64);
    }
}
