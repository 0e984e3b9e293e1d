//! From diffusers' names to LDM's single file.

use std::collections::{BTreeMap, BTreeSet};

use safelight_format::{Dtype, TensorSpec, plural, shown};

use super::find::{Layout, Model, Part, PartKind, REST_PREFIX, attention_shape};
use super::names::{self, Blocks};
use super::text::{self, ToOpenClip};
use super::{Family, Prediction};
use crate::adapt::arrange::{Arranged, Take};
use crate::error::ConvertError;
use crate::source::Note;

/// Queries, keys and values of a stack as they are found.
type Stack = [Option<(TensorSpec, usize)>; 3];

impl Model {
    /// The model as a single file's tensors. A model that is one already comes back as it is.
    ///
    /// # Errors
    /// [`ConvertError::Unsupported`] naming every tensor that LDM has no name for.
    pub fn to_ldm(&self) -> Result<Arranged, ConvertError> {
        let mut metadata = self.source.metadata().clone();
        if self.layout == Layout::Ldm {
            let all = self.source.tensors().iter().cloned().enumerate();
            let entries = all
                .map(|(index, spec)| (spec, Take::Whole(index)))
                .collect();
            return Arranged::new(
                self.source.clone(),
                entries,
                metadata,
                vec![],
                self.memory_bytes_max,
            );
        }
        metadata.remove(super::folder::ZERO_SNR_KEY);
        if self.family == Family::Sd2 || self.prediction == Prediction::V {
            metadata.insert(
                "modelspec.prediction_type".into(),
                self.prediction.modelspec_name().into(),
            );
        }
        let (mut entries, mut notes, mut nameless) = (Vec::new(), self.notes.clone(), Vec::new());
        for part in &self.parts {
            self.part_to_ldm(part, &mut entries, &mut notes, &mut nameless)?;
        }
        if !nameless.is_empty() {
            let shown: Vec<String> = nameless
                .iter()
                .map(|name| format!("`{}`", shown(name)))
                .collect();
            let what = format!(
                "{} without a name in a single file: {}",
                plural(shown.len() as u64, "tensor"),
                shown.join(", ")
            );
            return Err(ConvertError::unsupported(self.source.label(), "", what));
        }
        let there: BTreeSet<String> = entries.iter().map(|(spec, _)| spec.name.clone()).collect();
        for &index in &self.rest {
            let mut spec = self.source.tensors()[index].clone();
            spec.name = spec.name[REST_PREFIX.len()..].to_owned();
            if !there.contains(&spec.name) {
                entries.push((spec, Take::Whole(index)));
            }
        }
        self.mark(&mut entries);
        Arranged::new(
            self.source.clone(),
            entries,
            metadata,
            notes,
            self.memory_bytes_max,
        )
    }

    fn part_to_ldm(
        &self,
        part: &Part,
        entries: &mut Vec<(TensorSpec, Take)>,
        notes: &mut Vec<Note>,
        nameless: &mut Vec<String>,
    ) -> Result<(), ConvertError> {
        let prefix = self.prefix(part.kind);
        let blocks = Blocks::of_diffusers(part.tensors().map(|tensor| tensor.name.as_str()));
        let open_clip = prefix.ends_with(".model.");
        let mut stacks = BTreeMap::<String, Stack>::new();
        for (spec, take) in &part.entries {
            let (Take::Whole(index), name) = (take, &spec.name) else {
                unreachable!("a folder's tensors are taken whole");
            };
            let mut add = |name: String, shape: Vec<u64>, take: Take| {
                entries.push((
                    TensorSpec {
                        name: format!("{prefix}{name}"),
                        dtype: spec.dtype,
                        shape,
                    },
                    take,
                ))
            };
            match part.kind {
                PartKind::UNet => match names::unet_to_ldm(name, &blocks) {
                    Some(theirs) => add(theirs, spec.shape.clone(), take.clone()),
                    None => nameless.push(format!("unet.{name}")),
                },
                PartKind::Vae => match names::vae_to_ldm(name, &blocks) {
                    Some(theirs) => add(
                        theirs,
                        attention_shape(name, &spec.shape, true),
                        take.clone(),
                    ),
                    None => nameless.push(format!("vae.{name}")),
                },
                _ if !open_clip => add(name.clone(), spec.shape.clone(), take.clone()),
                _ => match text::to_open_clip(name) {
                    ToOpenClip::Same(theirs) => add(theirs, spec.shape.clone(), take.clone()),
                    ToOpenClip::Third(theirs, third) => {
                        stacks.entry(theirs).or_default()[third] = Some((spec.clone(), *index))
                    }
                    ToOpenClip::Transposed(theirs) => match spec.shape[..] {
                        [rows, columns] if spec.dtype.bits().is_multiple_of(8) => add(
                            theirs,
                            vec![columns, rows],
                            Take::Transposed(*index, rows, columns),
                        ),
                        _ => nameless.push(format!(
                            "{}.{name} (shape {:?})",
                            part.kind.folder(),
                            spec.shape
                        )),
                    },
                    ToOpenClip::Nowhere => notes.push(Note::new(
                        format!("{}.{name}", part.kind.folder()),
                        "dropped: OpenCLIP has no such tensor",
                    )),
                },
            }
        }
        for (name, stack) in stacks {
            entries.push(self.stacked(format!("{prefix}{name}"), stack)?);
        }
        Ok(())
    }

    /// Queries, keys and values behind each other.
    fn stacked(&self, name: String, stack: Stack) -> Result<(TensorSpec, Take), ConvertError> {
        let wrong = |what: &str| ConvertError::unsupported(self.source.label(), &name, what);
        let [Some((q, first)), Some((k, second)), Some((v, third))] = stack else {
            return Err(wrong("its queries, keys and values are not all there"));
        };
        if (q.dtype, &q.shape) != (k.dtype, &k.shape) || (q.dtype, &q.shape) != (v.dtype, &v.shape)
        {
            return Err(wrong(
                "its queries, keys and values differ in dtype or shape and cannot be stacked; cast them to one dtype",
            ));
        }
        let mut shape = q.shape;
        let rows = shape
            .first_mut()
            .and_then(|rows| Some((rows.checked_mul(3)?, rows)));
        let Some((stacked, rows)) = rows else {
            return Err(wrong(
                "its queries, keys and values have no rows to be stacked",
            ));
        };
        *rows = stacked;
        Ok((
            TensorSpec {
                name,
                dtype: q.dtype,
                shape,
            },
            Take::Join(vec![first, second, third]),
        ))
    }

    fn prefix(&self, kind: PartKind) -> &'static str {
        match (kind, self.family) {
            (PartKind::UNet, _) => "model.diffusion_model.",
            (PartKind::Vae, _) => "first_stage_model.",
            (PartKind::TextEncoder, Family::Sd2) => "cond_stage_model.model.",
            (PartKind::TextEncoder, Family::Sd1) => "cond_stage_model.transformer.",
            (PartKind::TextEncoder, _) => "conditioner.embedders.0.transformer.",
            (PartKind::TextEncoder2, Family::XlRefiner) => "conditioner.embedders.0.model.",
            (PartKind::TextEncoder2, _) => "conditioner.embedders.1.model.",
        }
    }

    /// The empty tensors by which UIs know velocity models of SDXL's kind, which have no other place to say it.
    fn mark(&self, entries: &mut Vec<(TensorSpec, Take)>) {
        let marks = [
            ("v_pred", self.prediction == Prediction::V),
            ("ztsnr", self.zero_snr),
        ];
        for (name, _) in marks
            .iter()
            .filter(|(_, wanted)| *wanted && self.family == Family::Xl)
        {
            if !entries.iter().any(|(spec, _)| spec.name == *name) {
                let spec = TensorSpec {
                    name: name.to_string(),
                    dtype: Dtype::F32,
                    shape: vec![0],
                };
                entries.push((spec, Take::Given(vec![])));
            }
        }
    }
}
