//! Where pictures go: numbered files that never replace one another, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::Failure;

/// The text chunk that A1111 and others read.
const KEYWORD: &str = "parameters";

/// Numbers of more digits are no numbers of ours.
const NUMBER_DIGITS_MAX: usize = 9;

/// An 8-bit RGB picture, rows from the top.
pub(crate) struct Rgb<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: &'a [u8],
}

/// A place for one job's pictures, tried out before the work begins.
#[derive(Debug)]
pub(crate) struct Output {
    folder: PathBuf,
    /// The file's name that was asked for; `None` means numbers.
    file: Option<String>,
    /// The outermost folder that was made for this, to be taken away if it stays empty.
    made: Option<PathBuf>,
}

impl Output {
    /// `target` is a `.png` file or a folder, which is made if need be; `None` means `outputs/`.
    pub(crate) fn new(target: Option<&Path>) -> Result<Output, Failure> {
        let target = target.unwrap_or(Path::new("outputs"));
        let text = target.to_string_lossy();
        if text == "-" {
            let what = "pictures can't be written to standard output; name a .png file or a folder";
            return Err(Failure::Usage(format!("-o -: {what}")));
        }
        let is_folder = target.is_dir()
            || text.ends_with(['/', std::path::MAIN_SEPARATOR])
            || target.extension().is_none();
        let (folder, file) = if is_folder {
            (target.to_owned(), None)
        } else {
            if !target
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("png"))
            {
                return Err(Failure::Usage(format!(
                    "{}: pictures are written as .png",
                    target.display()
                )));
            }
            let parent = target
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            (
                parent.to_owned(),
                target
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            )
        };
        let missing = folder
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = missing.last().map(Path::to_owned);
        let output = Output { folder, file, made };
        output
            .try_out()
            .map_err(|error| output.unwritable(&output.target(), &error))?;
        Ok(output)
    }

    /// Makes the folder and sees whether files can be made in it.
    fn try_out(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let probe = match &self.file {
            Some(_) => beside(&followed(&self.target())?),
            None => beside(&self.folder.join("x")),
        };
        File::create(&probe)?;
        fs::remove_file(probe)
    }

    /// What was asked for: the file or the folder.
    fn target(&self) -> PathBuf {
        match &self.file {
            Some(file) => self.folder.join(file),
            None => self.folder.clone(),
        }
    }

    /// Writes picture `idx` (from 0) of `count`; returns where it is.
    pub(crate) fn write(
        &self,
        picture: &Rgb,
        seed: u64,
        parameters: &str,
        idx: usize,
        count: usize,
    ) -> Result<PathBuf, Failure> {
        match &self.file {
            Some(file) => {
                let path = self.folder.join(batch_name(file, idx, count));
                let written = followed(&path).and_then(|target| {
                    write_whole(&beside(&target), picture, parameters, |temporary| {
                        fs::rename(temporary, &target)
                    })
                });
                written
                    .map(|()| path.clone())
                    .map_err(|error| self.unwritable(&path, &error))
            }
            None => {
                let temporary = beside(&self.folder.join("x"));
                write_whole(&temporary, picture, parameters, |temporary| {
                    self.place(temporary, seed)
                })
                .map_err(|error| self.unwritable(&self.folder, &error))
            }
        }
    }

    /// Gives the finished file the next free number.
    fn place(&self, temporary: &Path, seed: u64) -> io::Result<PathBuf> {
        let mut number = self.next_number()?;
        loop {
            let path = self.folder.join(format!("{number:05}-{seed}.png"));
            // A link appears whole, and not at all where something is.
            match fs::hard_link(temporary, &path) {
                Ok(()) => {
                    fs::remove_file(temporary)?;
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                // A file system without links: reserve the name, then rename over it.
                Err(_) => match OpenOptions::new().write(true).create_new(true).open(&path) {
                    Ok(_) => return fs::rename(temporary, &path).map(|()| path),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// One more than the largest number a file's name begins with.
    fn next_number(&self) -> io::Result<u64> {
        let mut largest = 0;
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let number = name
                .split_once('-')
                .filter(|(number, _)| number.len() <= NUMBER_DIGITS_MAX)
                .and_then(|(number, _)| number.parse::<u64>().ok());
            largest = largest.max(number.unwrap_or(0));
        }
        Ok(largest + 1)
    }

    fn unwritable(&self, path: &Path, error: &io::Error) -> Failure {
        Failure::Machine(format!(
            "{}: can't write pictures there: {error}; choose another place with -o",
            path.display()
        ))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        let below: Vec<&Path> = self
            .folder
            .ancestors()
            .take_while(|path| path.starts_with(made))
            .collect();
        // Only empty folders go.
        below.into_iter().try_for_each(fs::remove_dir).unwrap_or(());
    }
}

/// Where a file is written before it is whole: a name of ours in the folder of `path`.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".safelight-{}.tmp", std::process::id()))
}

/// Writes a picture to `temporary`, and has `place` bring it where it belongs; leaves nothing behind if that fails.
fn write_whole<T>(
    temporary: &Path,
    picture: &Rgb,
    parameters: &str,
    place: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let placed = write_png(temporary, picture, parameters).and_then(|()| place(temporary));
    if placed.is_err() {
        let _ = fs::remove_file(temporary);
    }
    placed
}

/// The file that `path` is, or that it links to, there or not; an error if a folder, pipe or device is there.
fn followed(path: &Path) -> io::Result<PathBuf> {
    const LINKS_MAX: usize = 40; // As on Linux.
    let mut target = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::symlink_metadata(&target) {
            Ok(metadata) if metadata.is_symlink() => {
                let folder = target.parent().unwrap_or(Path::new(""));
                target = folder.join(fs::read_link(&target)?);
            }
            Ok(metadata) if metadata.is_file() => return Ok(target),
            Ok(_) => return Err(io::Error::other("is a folder, a pipe or a device")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("links lead in a ring"))
}

/// `cat.png` for one picture; `cat-1.png`, `cat-2.png` … for several.
fn batch_name(file: &str, idx: usize, count: usize) -> String {
    match file.rsplit_once('.') {
        Some((stem, end)) if count > 1 => format!("{stem}-{}.{end}", idx + 1),
        _ => file.to_owned(),
    }
}

fn write_png(path: &Path, picture: &Rgb, parameters: &str) -> io::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let parameters = parameters.replace('\0', "");
    let latin1 = parameters.chars().all(|c| (c as u32) < 256);
    let added = match latin1 {
        true => encoder.add_text_chunk(KEYWORD.into(), parameters),
        false => encoder.add_itxt_chunk(KEYWORD.into(), parameters),
    };
    added.map_err(io::Error::other)?;
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer
        .write_image_data(picture.pixels)
        .map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    OpenOptions::new().append(true).open(path)?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICTURE: Rgb = Rgb {
        width: 1,
        height: 1,
        pixels: &[1, 2, 3],
    };

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_go_on_and_replace_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b");
        let output = Output::new(Some(&target)).unwrap();
        for idx in 0..2 {
            output.write(&PICTURE, 42 + idx as u64, "", idx, 2).unwrap();
        }
        fs::write(target.join("00007-x.txt"), "").unwrap();
        output.write(&PICTURE, 5, "", 0, 1).unwrap();
        drop(output);
        assert_eq!(
            names(&target),
            ["00001-42.png", "00002-43.png", "00007-x.txt", "00008-5.png"]
        );
    }

    #[test]
    fn a_named_file_is_replaced_and_a_batch_is_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::new(Some(&folder.path().join("cat.png"))).unwrap();
        for _ in 0..2 {
            output.write(&PICTURE, 1, "", 0, 1).unwrap();
        }
        output.write(&PICTURE, 1, "", 1, 2).unwrap();
        assert_eq!(names(folder.path()), ["cat-2.png", "cat.png"]);
        assert!(matches!(
            Output::new(Some(Path::new("cat.jpg"))),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn absurd_numbers_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "18446744073709551615-1.png",
            "9999999999-1.png",
            "00002-1.png",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let output = Output::new(Some(folder.path())).unwrap();
        let path = output.write(&PICTURE, 5, "", 0, 1).unwrap();
        assert_eq!(path, folder.path().join("00003-5.png"));
    }

    #[test]
    fn standard_output_and_names_too_long_are_refused_by_name() {
        let complaint = |target: &Path| Output::new(Some(target)).unwrap_err().to_string();
        assert!(complaint(Path::new("-")).contains("standard output"));
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(300) + ".png";
        assert!(complaint(&folder.path().join(&long)).contains(&long));
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_stay() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink("real/cat.png", at("link.png")).unwrap();
        for _ in 0..2 {
            let output = Output::new(Some(&at("link.png"))).unwrap();
            output.write(&PICTURE, 1, "", 0, 1).unwrap();
            assert!(fs::symlink_metadata(at("link.png")).unwrap().is_symlink());
            assert_eq!(names(&at("real")), ["cat.png"]);
        }
        symlink("ring.png", at("ring.png")).unwrap();
        assert!(Output::new(Some(&at("ring.png"))).is_err());
        symlink("/dev/null", at("null.png")).unwrap();
        assert!(Output::new(Some(&at("null.png"))).is_err());
        symlink("nowhere/cat.png", at("lost.png")).unwrap();
        assert!(Output::new(Some(&at("lost.png"))).is_err());
    }

    #[test]
    fn folders_made_in_vain_go_away() {
        let folder = tempfile::tempdir().unwrap();
        drop(Output::new(Some(&folder.path().join("a/b"))).unwrap());
        assert!(names(folder.path()).is_empty());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(
            Output::new(Some(&folder.path().join("file/x"))),
            Err(Failure::Machine(_))
        ));
    }

    #[test]
    fn parameters_are_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["Steps: 1, café", "日本 😀\nSteps: 1"] {
            let output = Output::new(Some(folder.path())).unwrap();
            let path = output.write(&PICTURE, 0, text, 0, 1).unwrap();
            assert_eq!(
                crate::picture::parameters(&path).unwrap().as_deref(),
                Some(text)
            );
        }
    }
}
