//! Numbers that a cast or a merge lost: how `convert` and `merge` tell of them.

use safelight_convert::CastReport;
use safelight_format::{Dtype, shown};
use serde_json::{Value, json};

use crate::say;

/// Rows that are printed for people.
const ROWS_SHOWN: usize = 20;

/// Tensors that lost numbers, of all that were cast or computed.
pub(crate) fn lossy(reports: Vec<CastReport>) -> Vec<CastReport> {
    let lossy = reports.into_iter().filter(CastReport::is_lossy);
    lossy.collect()
}

/// One object for each tensor.
pub(crate) fn to_json(lost: &[CastReport]) -> Value {
    let row = |report: &CastReport| {
        let counts = &report.counts;
        json!({
            "name": report.name, "from": report.from.name(), "to": report.to.name(), "elements": counts.element_count,
            "overflows": counts.overflow_count, "underflows": counts.underflow_count,
            "infinities": counts.infinity_count, "nans": counts.nan_count,
        })
    };
    lost.iter().map(row).collect()
}

/// A table, the worst first; `what` happened is `cast` or `merge`.
pub(crate) fn to_text(lost: &[CastReport], what: &str) -> String {
    if lost.is_empty() {
        return String::new();
    }
    let mut sorted: Vec<_> = lost.iter().collect();
    sorted.sort_by_key(|report| {
        let counts = &report.counts;
        std::cmp::Reverse((counts.overflow_count, counts.underflow_count))
    });
    let tensors = say::plural(lost.len() as u64, "tensor");
    let mut text = format!("{tensors} lost numbers in the {what}:\n");
    let row = |report: &&CastReport| {
        let counts = &report.counts;
        vec![
            format!("  {}", shown(&report.name)),
            match report.from == report.to {
                true => report.to.to_string(),
                false => format!("{} → {}", report.from, report.to),
            },
            format!("{} overflowed", counts.overflow_count),
            format!("{} became 0", counts.underflow_count),
            format!("of {}", counts.element_count),
        ]
    };
    let mut rows: Vec<_> = sorted.iter().take(ROWS_SHOWN).map(row).collect();
    text += &say::fitting_table(&mut rows, &[2, 3], 0, say::columns());
    if sorted.len() > ROWS_SHOWN {
        let more = sorted.len() - ROWS_SHOWN;
        text += &format!("  … and {more} more; --json lists them all\n");
    }
    text
}

/// Says on standard error that finite numbers left their dtype's range: a model with such numbers is seldom of use.
pub(crate) fn warn(lost: &[CastReport]) {
    let of = |report: &&CastReport| report.counts.overflow_count > 0;
    let tensors = lost.iter().filter(of).count() as u64;
    let count: u64 = lost.iter().map(|report| report.counts.overflow_count).sum();
    let Some(first) = lost.iter().find(of) else {
        return;
    };
    let now = match first.to {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E5m2 => "are infinite now",
        Dtype::F8E4m3 => "are the largest one now",
        _ => "are NaN now",
    };
    say::note(&format!(
        "warning: {} of {}, `{}` first, beyond the range of {}: they {now}",
        say::plural(count, "number"),
        say::plural(tensors, "tensor"),
        shown(&first.name),
        first.to,
    ));
}
