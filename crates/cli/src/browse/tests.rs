//! The browser without a terminal: keys in, whole screens out.
//!
//! Screens are kept in `tests/data/browse`; `SAFELIGHT_BLESS=1 cargo test -p safelight-cli browse` writes them anew.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use safelight_convert::{CheckpointSource, Contents, Source};
use safelight_format::{Dtype, HeaderPlan, Metadata, Order, TensorView};
use safelight_store::Checkpoint;

use super::app::{App, Known, View, Wish};
use super::draw::{Looks, draw};
use super::stats;

/// A model of a few tensors, with names to stumble over.
fn source() -> CheckpointSource {
    let ramp: Vec<u8> = (0..640)
        .flat_map(|i| ((i as f32 - 320.0) / 100.0).sin().to_le_bytes())
        .collect();
    let mut tensors = vec![
        ("model.embed.weight", Dtype::F32, vec![32, 20], ramp),
        (
            "model.norm.weight",
            Dtype::F16,
            vec![4],
            [0x3c00u16, 0x7e00, 0, 0xbc00]
                .map(u16::to_le_bytes)
                .concat(),
        ),
        ("step", Dtype::I64, vec![], 1000i64.to_le_bytes().to_vec()),
        (
            "evil\u{1b}[2J\u{202e}name",
            Dtype::U8,
            vec![3],
            vec![1, 2, 3],
        ),
        ("empty", Dtype::Bf16, vec![0, 7], vec![]),
    ];
    let names: Vec<String> = (0..12)
        .flat_map(|layer| {
            ["attn.to_q.weight", "mlp.down_proj.weight"]
                .map(|part| format!("model.layers.{layer}.{part}"))
        })
        .collect();
    tensors.extend(
        names
            .iter()
            .map(|name| (name.as_str(), Dtype::Bf16, vec![8, 8], vec![0; 128])),
    );
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| TensorView {
            name,
            dtype: *dtype,
            shape,
            bytes,
        })
        .collect();
    let metadata: Metadata = [
        ("format", "pt"),
        ("modelspec.title", "A test"),
        ("notes", "two\nlines, the second of which is longer than eighty columns, so that it must be wrapped somewhere"),
        ("bad\u{1b}key", "bad\u{1b}[31m\u{202e}value"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let file = HeaderPlan::new(&views, Some(&metadata), Order::default())
        .unwrap()
        .to_bytes(&views);
    CheckpointSource::new(Checkpoint::from_bytes("models/test.safetensors", file).unwrap())
}

struct Browser {
    source: CheckpointSource,
    app: App,
    terminal: Terminal<TestBackend>,
}

impl Browser {
    fn new(width: u16, height: u16) -> Browser {
        Browser::of(source(), width, height)
    }

    fn of(source: CheckpointSource, width: u16, height: u16) -> Browser {
        let app = App::new(&source);
        let terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut browser = Browser {
            source,
            app,
            terminal,
        };
        browser.screen();
        browser
    }

    /// Presses keys: letters, and words in `<>`.
    fn press(&mut self, keys: &str) -> Option<Wish> {
        let mut rest = keys;
        let mut wish = None;
        while let Some(c) = rest.chars().next() {
            let (code, len) = match rest.split_once('>') {
                Some((name, _)) if c == '<' => (named(&name[1..]), name.len() + 1),
                _ => (KeyCode::Char(c), c.len_utf8()),
            };
            rest = &rest[len..];
            wish = self
                .app
                .key(KeyEvent::new(code, KeyModifiers::NONE))
                .or(wish);
            self.screen();
        }
        wish
    }

    /// Waits until the selected tensor's numbers are there, as the terminal's loop does.
    fn read(&mut self) {
        let now = Instant::now();
        self.app.wanted(now);
        if let Some(tensor) = self.app.wanted(now + Duration::from_secs(1)) {
            let stats = stats::stats(&self.source, tensor, &|_| true).unwrap();
            self.app.learn(tensor, Known::Stats(stats));
        }
    }

    /// What is to be seen, without spaces at line ends.
    fn screen(&mut self) -> String {
        let (app, looks) = (&mut self.app, Looks::new(false));
        self.terminal.draw(|frame| draw(app, looks, frame)).unwrap();
        let buffer = self.terminal.backend().buffer();
        let row = |y: u16| {
            let cells = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned() + "\n"
        };
        (0..buffer.area.height).map(row).collect()
    }

    fn shows(&mut self, name: &str) {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/browse/{name}.txt"));
        let screen = self.screen();
        if std::env::var_os("SAFELIGHT_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &screen).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(screen, expected, "{name}:\n{screen}");
    }
}

fn named(key: &str) -> KeyCode {
    match key {
        "down" => KeyCode::Down,
        "up" => KeyCode::Up,
        "left" => KeyCode::Left,
        "right" => KeyCode::Right,
        "pgdn" => KeyCode::PageDown,
        "pgup" => KeyCode::PageUp,
        "home" => KeyCode::Home,
        "end" => KeyCode::End,
        "enter" => KeyCode::Enter,
        "esc" => KeyCode::Esc,
        "back" => KeyCode::Backspace,
        _ => panic!("no key {key}"),
    }
}

#[test]
fn screens() {
    let mut browser = Browser::new(80, 24);
    browser.shows("start");
    browser.press("jjj<right>j<right>j");
    browser.shows("open");
    browser.press("<home>m");
    browser.shows("metadata");
    browser.press("q?");
    browser.shows("help");
    browser.press("q/emb");
    browser.read();
    browser.shows("find");
    browser.press("<enter><enter>");
    browser.shows("found");
    browser.press("/norm<enter><esc>");
    browser.read();
    browser.shows("numbers");
}

#[test]
fn small_and_large_terminals() {
    for (width, height) in [
        (1, 1),
        (5, 3),
        (20, 5),
        (40, 10),
        (59, 24),
        (60, 2),
        (200, 60),
    ] {
        let mut browser = Browser::new(width, height);
        for keys in [
            "", "G", "+", "m", "<end>", "q", "?", "q", "/e", "<down>", "<esc>", "s", "<home>",
        ] {
            browser.press(keys);
            browser.read();
            let screen = browser.screen();
            assert_eq!(
                screen.lines().count(),
                usize::from(height),
                "{width} × {height} {keys}"
            );
            assert!(!screen.contains(['\u{1b}', '\u{202e}']), "{screen}");
        }
    }
    let mut browser = Browser::new(40, 10);
    browser.press("+");
    browser.shows("narrow");
}

#[test]
fn every_line_can_be_reached_and_the_bar_stays_in_view() {
    let mut browser = Browser::new(80, 12);
    browser.press("+");
    let count = browser.app.line_count();
    assert!(count > 24, "{count}");
    for _ in 0..count + 5 {
        browser.press("j");
        let seen = browser.app.top..browser.app.top + browser.app.page;
        assert!(seen.contains(&browser.app.selected));
    }
    assert_eq!(browser.app.selected, count - 1);
    browser.press("<pgup><pgup><pgup><pgup><pgup><pgup>");
    assert_eq!((browser.app.selected, browser.app.top), (0, 0));
    browser.press("<end><pgdn>-");
    assert!(browser.app.selected < browser.app.line_count());
}

#[test]
fn finding() {
    let mut browser = Browser::new(80, 24);
    browser.press("/zzz");
    assert_eq!((browser.app.line_count(), browser.app.tensor()), (0, None));
    browser.press("<enter><enter>");
    assert!(browser.app.search.is_none());
    browser.press("/11 down<enter>");
    let found = browser.app.tensor().unwrap();
    assert_eq!(
        browser.app.tensors[found].name,
        "model.layers.11.mlp.down_proj.weight"
    );
    browser.press("<esc>");
    assert_eq!(browser.app.tensor(), Some(found));
    browser.press("/qm<back><back><enter>");
    assert!(browser.app.search.is_none());
}

#[test]
fn keys_that_come_together_are_searched_for_once() {
    let mut browser = Browser::new(80, 24);
    for key in "/11 down".chars().map(KeyCode::Char) {
        browser.app.key(KeyEvent::new(key, KeyModifiers::NONE));
    }
    assert_eq!(browser.app.line_count(), 0);
    // Enter takes what was typed, though no screen showed it yet.
    browser
        .app
        .key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
    let found = browser.app.tensor().unwrap();
    let name = &browser.app.tensors[found].name;
    assert_eq!(name, "model.layers.11.mlp.down_proj.weight");
    // Longer queries narrow, others begin anew.
    browser.press("/x");
    assert_eq!(browser.app.line_count(), 0);
    browser.press("<back><back><back><back><back>");
    assert!(browser.app.line_count() > 1);
}

#[test]
fn leaving() {
    let mut browser = Browser::new(80, 24);
    assert_eq!(browser.press("m<esc>?<esc>/q<esc>"), None);
    assert_eq!(browser.press("<esc>"), Some(Wish::Quit));
    assert_eq!(browser.press("q"), Some(Wish::Quit));
    for keys in ["", "m", "/x"] {
        browser.press(keys);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(browser.app.key(control_c), Some(Wish::Interrupt));
    }
    assert_eq!(browser.app.view, View::Metadata);
}

#[test]
fn large_tensors_are_read_on_request_only() {
    struct Huge(Contents);
    impl Source for Huge {
        fn contents(&self) -> &Contents {
            &self.0
        }
        fn read(
            &self,
            _: usize,
            _: &mut dyn FnMut(&[u8]) -> Result<(), safelight_convert::ConvertError>,
        ) -> Result<(), safelight_convert::ConvertError> {
            Ok(())
        }
    }
    let huge = safelight_format::TensorSpec {
        name: "w".into(),
        dtype: Dtype::F32,
        shape: vec![1 << 40],
    };
    let mut app = App::new(&Huge(Contents {
        tensors: vec![huge],
        ..Contents::default()
    }));
    let now = Instant::now();
    app.wanted(now);
    assert_eq!(app.wanted(now + Duration::from_secs(9)), None);
    app.key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
    assert_eq!(app.wanted(now), Some(0));
}

#[test]
fn dtypes_that_the_format_does_not_have_are_listed_without_numbers() {
    let json = r#"{"a":{"dtype":"F128","shape":[2],"data_offsets":[0,32]},"b":{"dtype":"U8","shape":[1],"data_offsets":[32,33]}}"#;
    let file = [
        &(json.len() as u64).to_le_bytes()[..],
        json.as_bytes(),
        &[7; 33],
    ]
    .concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    std::fs::write(&path, file).unwrap();
    let options = safelight_store::OpenOptions {
        opaque_dtypes: true,
        ..Default::default()
    };
    let checkpoint = Checkpoint::open_with(&path, &options).unwrap();
    let source = CheckpointSource::new(checkpoint);
    let mut browser = Browser::of(source, 80, 12);
    assert!(browser.screen().contains("2 tensors, 33 bytes"));
    browser.press("/a<enter>");
    assert!(browser.screen().contains("F128 [2]"));
    assert!(browser.screen().contains("nothing is known"));
    browser
        .app
        .key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
    let now = Instant::now();
    browser.app.wanted(now);
    assert_eq!(browser.app.wanted(now + Duration::from_secs(9)), None);
}
