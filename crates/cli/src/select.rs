//! Which tensors `convert` writes, and under which names.

use std::collections::HashMap;
use std::sync::Arc;

use clap::Args;
use safelight_convert::{Source, rename};
use safelight_format::shown;

use crate::error::Failure;
use crate::pattern::{Pattern, check_patterns};

/// The arguments that choose tensors. Names are those of the source.
#[derive(Debug, Args)]
pub(crate) struct SelectArgs {
    /// Only tensors whose names fit: a glob, or the first parts of names (repeatable)
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::glob)]
    only: Vec<Pattern>,
    /// No tensors whose names fit: a glob, or the first parts of names (repeatable)
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::glob)]
    exclude: Vec<Pattern>,
    /// Give this tensor another name (repeatable)
    #[arg(long, value_name = "OLD=NEW", value_parser = names)]
    rename: Vec<(String, String)>,
}

fn names(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.into(), new.into())),
        _ => {
            Err("a tensor's name, `=` and its new name are needed, as in a.weight=b.weight".into())
        }
    }
}

impl SelectArgs {
    /// The tensors that are wanted, under the names that are wanted.
    ///
    /// # Errors
    /// [`Failure::Usage`] for patterns and names that fit no tensor, if none is left, and if two would get one name.
    pub(crate) fn of(&self, source: Arc<dyn Source>) -> Result<Arc<dyn Source>, Failure> {
        if self.only.is_empty() && self.exclude.is_empty() && self.rename.is_empty() {
            return Ok(source);
        }
        let contents = source.contents();
        let skipped = contents.skipped.iter().map(|note| note.at.as_str());
        let all: Vec<&str> = contents.names().chain(skipped).collect();
        check_patterns("--only", &self.only, source.label(), &all)?;
        check_patterns("--exclude", &self.exclude, source.label(), &all)?;
        let mut new_names: HashMap<&str, &str> = HashMap::new();
        for (old, new) in &self.rename {
            if !self.wants(old) || !all.contains(&old.as_str()) {
                let (old, file) = (shown(old), shown(source.label()));
                let what =
                    format!("{file}: --rename `{old}`: no tensor that is written has this name");
                return Err(Failure::Usage(what));
            }
            new_names.insert(old, new);
        }
        let chosen = rename(source.clone(), |name| {
            let name = self.wants(name).then_some(name)?;
            Some(new_names.get(name).copied().unwrap_or(name).to_owned())
        })?;
        if chosen.contents().tensor_count() == 0 {
            let file = shown(source.label());
            let what = format!("{file}: --only and --exclude leave no tensor to write");
            return Err(Failure::Usage(what));
        }
        Ok(Arc::new(chosen))
    }

    /// Whether a tensor of the source is written.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let fits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(name));
        (self.only.is_empty() || fits(&self.only)) && !fits(&self.exclude)
    }
}
