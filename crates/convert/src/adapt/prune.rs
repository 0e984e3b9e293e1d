//! What a checkpoint holds besides its model: averaged weights, the optimizer's state, counters. Told from names.

use std::collections::BTreeMap;
use std::sync::Arc;

use safelight_format::{TensorSpec, plural};

use super::arrange::{Arranged, Take};
use crate::error::ConvertError;
use crate::source::{Note, Source};

/// What a tensor is for, told from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The model.
    Model,
    /// Weights averaged during training (EMA).
    Averaged,
    /// The optimizer's memory.
    Optimizer,
    /// Learning rates, callbacks, counters, loss networks: what training goes on with.
    Training,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Averaged => "averaged weights (EMA)",
            Kind::Optimizer => "optimizer",
            Kind::Training => "training state",
        }
    }
}

/// First pieces of names, or whole names, that stand beside a model.
const BESIDE: [(&str, Kind); 24] = [
    ("model_ema", Kind::Averaged),
    ("ema", Kind::Averaged),
    ("ema_model", Kind::Averaged),
    ("optimizer_states", Kind::Optimizer),
    ("optimizer_state_dict", Kind::Optimizer),
    ("optimizer", Kind::Optimizer),
    ("optim", Kind::Optimizer),
    ("lr_schedulers", Kind::Training),
    ("lr_scheduler", Kind::Training),
    ("scheduler_state_dict", Kind::Training),
    ("callbacks", Kind::Training),
    ("loops", Kind::Training),
    ("native_amp_scaling_state", Kind::Training),
    ("grad_scaler", Kind::Training),
    ("scaler", Kind::Training),
    ("epoch", Kind::Training),
    ("global_step", Kind::Training),
    ("step", Kind::Training),
    ("hyper_parameters", Kind::Training),
    ("hparams_name", Kind::Training),
    ("random_states", Kind::Training),
    ("rng_state", Kind::Training),
    ("pytorch-lightning_version", Kind::Training),
    ("loss", Kind::Training),
];

/// What a tensor of this name is for.
pub(crate) fn kind_of(name: &str) -> Kind {
    let name = name.strip_prefix("state_dict.").unwrap_or(name);
    if name.starts_with("first_stage_model.loss.") {
        return Kind::Training;
    }
    let first = name.split('.').next().unwrap_or(name);
    BESIDE
        .iter()
        .find(|(beside, _)| *beside == first)
        .map_or(Kind::Model, |&(_, kind)| kind)
}

/// Which of two sets of weights a pruned checkpoint keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Those training ended with, as "pruned" checkpoints have them. Averaged ones are dropped.
    #[default]
    Trained,
    /// The averaged ones, under the names of the others, as "ema-only" checkpoints have them.
    Averaged,
    /// Both.
    Both,
}

/// What [`prune`] takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// Which weights stay.
    pub keep: Keep,
}

/// What LDM's averaged weights are called: the name without its dots, behind this.
const EMA_PREFIX: &str = "model_ema.";
/// Names with dots that averaged weights stand for begin so.
const AVERAGED_PREFIX: &str = "model.";

/// `source` without optimizer, training state and, as chosen, one of the two sets of weights; each kind that is dropped
/// is a note with count and bytes.
///
/// # Errors
/// [`ConvertError::Unsupported`] if averaged weights are asked for and there are none, or they do not fit the model's.
pub fn prune(source: Arc<dyn Source>, options: &PruneOptions) -> Result<Arranged, ConvertError> {
    let averaged = match options.keep {
        Keep::Averaged => averaged(&*source)?,
        Keep::Trained | Keep::Both => BTreeMap::new(),
    };
    let mut dropped = BTreeMap::<Kind, (usize, u64)>::new();
    let mut drop = |kind, byte_count| {
        let (count, bytes) = dropped.entry(kind).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(byte_count);
    };
    let mut entries = Vec::new();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let kind = kind_of(&tensor.name);
        if kind == Kind::Model || (kind == Kind::Averaged && options.keep == Keep::Both) {
            let taken = averaged.get(tensor.name.as_str()).copied().unwrap_or(index);
            let spec = TensorSpec {
                name: tensor.name.clone(),
                ..source.tensors()[taken].clone()
            };
            entries.push((spec, Take::Whole(taken)));
        } else {
            drop(kind, tensor.byte_count().unwrap_or(0));
        }
    }
    let mut opaque = Vec::new();
    for (position, tensor) in source.opaque().iter().enumerate() {
        match kind_of(&tensor.name) {
            Kind::Model => opaque.push((tensor.name.clone(), position)),
            Kind::Averaged if options.keep == Keep::Both => {
                opaque.push((tensor.name.clone(), position));
            }
            kind => drop(kind, tensor.byte_count),
        }
    }
    let mut notes: Vec<Note> = dropped
        .into_iter()
        .map(|(kind, (count, bytes))| {
            Note::new(
                kind.name(),
                format!("dropped: {count} tensors, {bytes} bytes"),
            )
        })
        .collect();
    if !averaged.is_empty() {
        let what = format!(
            "{} with averaged values",
            plural(averaged.len() as u64, "tensor")
        );
        notes.push(Note::new(Kind::Averaged.name(), what));
    }
    let metadata = source.metadata().clone();
    Arranged::new(source, entries, metadata, notes, 0)?.with_opaque(opaque)
}

/// For each name of the model, the averaged tensor that stands for it.
fn averaged(source: &dyn Source) -> Result<BTreeMap<&str, usize>, ConvertError> {
    let tensors = source.tensors();
    let mut flat = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        if let Some(name) = tensor
            .name
            .strip_prefix(EMA_PREFIX)
            .filter(|name| !matches!(*name, "decay" | "num_updates"))
        {
            flat.insert(name, index);
        }
    }
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for tensor in tensors
        .iter()
        .filter(|tensor| kind_of(&tensor.name) == Kind::Model)
    {
        let Some(rest) = tensor.name.strip_prefix(AVERAGED_PREFIX) else {
            continue;
        };
        let Some(index) = flat.remove(rest.replace('.', "").as_str()) else {
            continue;
        };
        if tensors[index].shape != tensor.shape {
            problems.push(format!(
                "`{}` {:?} for `{}` {:?}",
                tensors[index].name, tensors[index].shape, tensor.name, tensor.shape
            ));
        }
        found.insert(tensor.name.as_str(), index);
    }
    problems.extend(flat.values().map(|&index| {
        format!(
            "`{}` stands for no tensor of the model",
            tensors[index].name
        )
    }));
    if found.is_empty() && problems.is_empty() {
        let what = "no averaged weights (`model_ema.…`) in this file; leave --ema away to keep the weights that are there";
        return Err(ConvertError::unsupported(source.label(), "", what));
    }
    if !problems.is_empty() {
        let what = format!(
            "averaged weights do not fit the model: {}",
            problems.join("; ")
        );
        return Err(ConvertError::unsupported(source.label(), "", what));
    }
    Ok(found)
}

/// `source` with the names that `rename` gives; `None` leaves a tensor out; one note says how many.
///
/// # Errors
/// [`ConvertError::Request`] if two tensors would get one name.
pub fn rename(
    source: Arc<dyn Source>,
    mut rename: impl FnMut(&str) -> Option<String>,
) -> Result<Arranged, ConvertError> {
    let (mut entries, mut left_out) = (Vec::new(), 0u64);
    for (index, tensor) in source.tensors().iter().enumerate() {
        match rename(&tensor.name) {
            Some(name) => entries.push((
                TensorSpec {
                    name,
                    ..tensor.clone()
                },
                Take::Whole(index),
            )),
            None => left_out += 1,
        }
    }
    let mut opaque = Vec::new();
    for (position, tensor) in source.opaque().iter().enumerate() {
        match rename(&tensor.name) {
            Some(name) => opaque.push((name, position)),
            None => left_out += 1,
        }
    }
    let tensors = plural(left_out, "tensor");
    let note = Note::new("", format!("{tensors} left out, as asked"));
    let notes = if left_out > 0 { vec![note] } else { Vec::new() };
    let metadata = source.metadata().clone();
    Arranged::new(source, entries, metadata, notes, 0)?.with_opaque(opaque)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use safelight_format::Dtype;

    fn source(names: &[&'static str]) -> Arc<dyn Source> {
        Arc::new(Memory::new(names.iter().enumerate().map(
            |(index, name)| (*name, Dtype::U8, vec![1], vec![index as u8]),
        )))
    }

    fn found(source: &dyn Source) -> Vec<(&str, u8)> {
        let bytes = |index| super::super::arrange::read_whole(source, index, 9).unwrap()[0];
        source
            .tensors()
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.as_str(), bytes(index)))
            .collect()
    }

    const NAMES: [&str; 7] = [
        "model.diffusion_model.out.2.bias",
        "model_ema.diffusion_modelout2bias",
        "model_ema.decay",
        "optimizer_states.0.state.0.exp_avg",
        "global_step",
        "first_stage_model.loss.logvar",
        "betas",
    ];

    #[test]
    fn the_model_stays_and_the_rest_is_counted() {
        let pruned = prune(source(&NAMES), &PruneOptions::default()).unwrap();
        assert_eq!(found(&pruned), [(NAMES[0], 0), (NAMES[6], 6)]);
        let notes: Vec<String> = pruned.notes().iter().map(|note| note.to_string()).collect();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(
            notes[0].contains("EMA") && notes[0].contains("2 tensors, 2 bytes"),
            "{notes:?}"
        );
    }

    #[test]
    fn averaged_weights_take_the_others_place() {
        let keep = |keep| prune(source(&NAMES), &PruneOptions { keep }).unwrap();
        assert_eq!(found(&keep(Keep::Averaged)), [(NAMES[0], 1), (NAMES[6], 6)]);
        assert_eq!(found(&keep(Keep::Both)).len(), 4);
    }

    #[test]
    fn averaged_weights_that_are_not_there_are_refused() {
        for (names, says) in [
            (&["model.a", "betas"][..], "no averaged weights"),
            (
                &["model.a", "model_ema.a", "model_ema.b"],
                "`model_ema.b` stands for no tensor",
            ),
        ] {
            let refused = prune(
                source(names),
                &PruneOptions {
                    keep: Keep::Averaged,
                },
            )
            .err()
            .unwrap()
            .to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn names_change_and_must_stay_apart() {
        let renamed = rename(source(&["a.x", "b"]), |name| {
            name.strip_prefix("a.").map(String::from)
        })
        .unwrap();
        assert_eq!(
            (found(&renamed), renamed.notes().len()),
            (vec![("x", 0)], 1)
        );
        assert!(matches!(
            rename(source(&["a", "b"]), |_| Some("c".into())),
            Err(ConvertError::Request { .. })
        ));
    }
}
