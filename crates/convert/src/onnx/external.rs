//! Tensor data that lies in files beside the model: inside of the model's folder only, whatever the model says.

use std::path::{Component, Path, PathBuf};

use safelight_format::shown;

use crate::error::ConvertError;
use crate::input::Input;

/// Where a model lies.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The folder of the model's real file, if its name is a link: caches keep all files in one place.
    real: Option<PathBuf>,
}

impl Folder {
    /// The folder of a model.
    pub(super) fn of(model: &Path) -> Folder {
        let path = match model.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let real = model.canonicalize().ok();
        let real = real.and_then(|model| Some(model.parent()?.to_owned()));
        Folder { path, real }
    }
}

/// A tensor's `external_data`, as it stands in the model.
#[derive(Clone, Debug, Default)]
pub(super) struct External {
    pub(super) location: Option<String>,
    pub(super) offset: Option<String>,
    pub(super) length: Option<String>,
}

/// Where a tensor's bytes lie in another file.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
}

impl External {
    /// Finds the bytes of tensor `name`, which must be `byte_count` many. `folder` is the model's.
    pub(super) fn find(
        &self,
        input: &Input,
        folder: Option<&Folder>,
        name: &str,
        byte_count: u64,
    ) -> Result<Outside, ConvertError> {
        let Some(location) = &self.location else {
            return Err(input.malformed(name, "its data is external, but no location says where"));
        };
        let Some(folder) = folder else {
            let what = "its data is in another file, and this model did not come from a folder";
            return Err(input.unsupported(name, what));
        };
        let path = inside(folder, location).map_err(|why| {
            let what = format!(
                "its data is said to be in `{}`, {why}; only files in the model's own folder are read",
                shown(location)
            );
            input.unsupported(name, what)
        })?;
        let number = |text: &Option<String>, what: &str| match text {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                let problem = format!("its external {what} is `{}`, no whole number", shown(text));
                input.malformed(name, problem)
            }),
        };
        let offset = number(&self.offset, "offset")?.unwrap_or(0);
        let there = path
            .metadata()
            .map_err(ConvertError::io("look at", &path))?
            .len();
        let length = number(&self.length, "length")?;
        let length = length.unwrap_or(there.saturating_sub(offset));
        if length != byte_count {
            let problem = format!(
                "{length} bytes in `{}`, but its shape and type need {byte_count}",
                shown(location)
            );
            return Err(input.malformed(name, problem));
        }
        if offset.checked_add(length).is_none_or(|end| end > there) {
            let problem = format!(
                "{length} bytes at byte {offset} of `{}`, which has only {there}; is it whole?",
                shown(location)
            );
            return Err(input.malformed(name, problem));
        }
        Ok(Outside { path, offset })
    }
}

/// A file's real path, if it is a file of this folder or of one within, or lies beside the model's real file.
fn inside(folder: &Folder, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    if location.is_empty() || leaves_folder(location) {
        return Err("which is no path inside of a folder".into());
    }
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| format!("which cannot be found ({error})"))
    };
    let path = real(&folder.path.join(relative))?;
    let beside = path
        .parent()
        .is_some_and(|parent| folder.real.as_deref() == Some(parent));
    if !beside && !path.starts_with(real(&folder.path)?) {
        return Err("which is a link to a place outside of the model's folder".into());
    }
    if !path.is_file() {
        return Err("which is no file".into());
    }
    Ok(path)
}

/// Whether a location leads out of the model's folder, by what it says alone: on this system or on Windows.
pub(super) fn leaves_folder(location: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let is_drive =
        matches!(location.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    let is_up = location.split(['/', '\\']).any(|part| part == "..");
    is_drive
        || is_up
        || location.starts_with('\\')
        || location.contains('\0')
        || !Path::new(location).components().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir_all(model.join("part")).unwrap();
        std::fs::write(model.join("m.onnx"), b"1").unwrap();
        std::fs::write(model.join("part/a.bin"), b"1").unwrap();
        std::fs::write(folder.path().join("secret"), b"1").unwrap();
        let place = model.clone();
        let model = Folder::of(&model.join("m.onnx"));
        assert!(inside(&model, "part/a.bin").is_ok());
        assert!(inside(&model, "./part/a.bin").is_ok());
        let secret = folder.path().join("secret");
        for location in [
            "",
            "../secret",
            "part/../../secret",
            secret.to_str().unwrap(),
            "part",
            "none",
            "a\0b",
        ] {
            assert!(inside(&model, location).is_err(), "{location}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&secret, place.join("link")).unwrap();
            std::os::unix::fs::symlink("part/a.bin", place.join("fine")).unwrap();
            std::os::unix::fs::symlink("..", place.join("up")).unwrap();
            assert!(inside(&model, "link").unwrap_err().contains("link"));
            assert!(inside(&model, "up/secret").unwrap_err().contains("link"));
            assert!(inside(&model, "fine").is_ok());
            // Hugging Face's cache: names are links into a folder of contents.
            let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshot"));
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::create_dir_all(&snapshot).unwrap();
            for (name, blob) in [("m.onnx", "1a"), ("m.onnx_data", "2b")] {
                std::fs::write(blobs.join(blob), b"1").unwrap();
                let target = Path::new("../blobs").join(blob);
                std::os::unix::fs::symlink(target, snapshot.join(name)).unwrap();
            }
            std::os::unix::fs::symlink(&secret, snapshot.join("link")).unwrap();
            let cached = Folder::of(&snapshot.join("m.onnx"));
            assert!(inside(&cached, "m.onnx_data").is_ok());
            assert!(inside(&cached, "link").unwrap_err().contains("link"));
        }
    }
}
