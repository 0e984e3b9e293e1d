//! The checksums that trainers write into metadata: proof that numbers are right, or that they are not.

use std::ops::{ControlFlow, Range};

use safelight_format::{HeaderPlan, Metadata, PlanOptions, TensorSpec};

use super::Kept;
use crate::error::StoreError;
use crate::hash::{hash_ranges, recorded_hashes};
use crate::source::FileSource;

/// A checksum that the metadata say, and whether it is that of the tensors that are kept.
pub(super) fn recorded(
    source: &FileSource,
    kept: &[Kept],
    metadata: Option<&Metadata>,
) -> Result<Option<(&'static str, bool)>, StoreError> {
    let said = metadata.map(recorded_hashes).unwrap_or_default();
    let Some((key, expected)) = said.into_iter().next() else {
        return Ok(None);
    };
    if kept.iter().any(|kept| kept.opaque.is_some()) || expected.len() != 64 {
        return Ok(None);
    }
    let place = |kept: &Kept| kept.starts_at..kept.starts_at + kept.byte_count;
    let specs: Vec<TensorSpec> = kept.iter().map(|kept| kept.spec.clone()).collect();
    let Ok(plan) = HeaderPlan::from_specs(&specs, None, &PlanOptions::default()) else {
        return Ok(None);
    };
    let anew: Vec<Range<u64>> = plan.order().iter().map(|&at| place(&kept[at])).collect();
    let as_it_is: Vec<Range<u64>> = kept.iter().map(place).collect();
    for places in [&anew, &as_it_is] {
        let found = hash_ranges(source, places, &mut |_, _| ControlFlow::Continue(()))?;
        if found == expected {
            return Ok(Some((key, true)));
        }
        if anew == as_it_is {
            break;
        }
    }
    Ok(Some((key, false)))
}
