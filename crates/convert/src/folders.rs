//! Folders that come and go with what is written into them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::ConvertError;

/// Folders that were made for something, and are taken away again unless it is finished.
pub(crate) struct MadeFolders {
    /// The innermost first.
    made: Vec<PathBuf>,
}

impl MadeFolders {
    /// Makes a folder and those above it, as far as they are not there.
    ///
    /// # Errors
    /// What the system says; nothing was made then.
    pub(crate) fn make(folder: &Path) -> Result<MadeFolders, ConvertError> {
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made = folder.ancestors().take_while(missing);
        let made = MadeFolders {
            made: made.map(Path::to_owned).collect(),
        };
        if !folder.as_os_str().is_empty() {
            fs::create_dir_all(folder).map_err(ConvertError::io("create", folder))?;
        }
        Ok(made)
    }

    /// They stay.
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.made {
            let _ = fs::remove_dir(folder); // only if it is empty
        }
    }
}

/// A folder under a temporary name beside the one it will be; removed unless it is finished.
pub(crate) struct Building {
    pub(crate) path: PathBuf,
    above: MadeFolders,
    done: bool,
}

impl Building {
    /// An empty folder of its own: one that a killed process left behind is not taken.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn beside(dst: &Path) -> Result<Building, ConvertError> {
        let name = dst.file_name().unwrap_or_default().to_string_lossy();
        let above = MadeFolders::make(dst.parent().unwrap_or(Path::new("")))?;
        let mut count = 0;
        loop {
            let own = format!(".{name}.{}-{count}.part", std::process::id());
            let path = dst.with_file_name(own);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let done = false;
                    return Ok(Building { path, above, done });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
                Err(error) => return Err(ConvertError::io("create", &path)(error)),
            }
        }
    }

    /// Writes a small file, whose folder is made if need be.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(ConvertError::io("create", folder))?;
        }
        fs::write(&path, bytes).map_err(ConvertError::io("write", &path))
    }

    /// Gives it its name, which may be that of an empty folder.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn finish(mut self, dst: &Path) -> Result<(), ConvertError> {
        let _ = fs::remove_dir(dst); // only if it is empty
        fs::rename(&self.path, dst)
            .map_err(ConvertError::io("rename a finished folder to", dst))?;
        self.done = true;
        self.above.made.clear();
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finished_is_taken_away_again() {
        let place = tempfile::tempdir().unwrap();
        let dst = place.path().join("a/b/c");
        drop(MadeFolders::make(&dst).unwrap());
        assert!(!place.path().join("a").exists());
        let building = Building::beside(&dst).unwrap();
        building.write("x/y", b"1").unwrap();
        drop(building);
        assert!(!place.path().join("a").exists());
        // A stale folder is not gone on with.
        fs::create_dir_all(place.path().join("a/b")).unwrap();
        let stale = format!("a/b/.c.{}-0.part", std::process::id());
        fs::create_dir(place.path().join(&stale)).unwrap();
        fs::write(place.path().join(stale).join("old"), b"").unwrap();
        let building = Building::beside(&dst).unwrap();
        building.write("new", b"1").unwrap();
        building.finish(&dst).unwrap();
        assert!(dst.join("new").exists() && !dst.join("old").exists());
    }
}
