//! Reports in SARIF 2.1.0, which code hosts and editors read.
//!
//! Source: OASIS, Static Analysis Results Interchange Format Version 2.1.0, §3.13 (the file), §3.27 (a result).

use serde_json::{Value, json};

use super::{Finding, Rule, ScanReport, Severity};

/// All reports as one SARIF log. What is allowed is left out.
pub fn sarif(reports: &[ScanReport]) -> Value {
    let rule = |rule: &Rule| {
        json!({
            "id": rule.name(),
            "shortDescription": { "text": rule.description() },
        })
    };
    let results: Vec<Value> = reports
        .iter()
        .flat_map(|report| {
            let told = |finding: &&Finding| finding.severity > Severity::Allowed;
            report
                .findings
                .iter()
                .filter(told)
                .map(|finding| result(report, finding))
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "safelight",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": Rule::ALL.iter().map(rule).collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(report: &ScanReport, finding: &Finding) -> Value {
    let level = match finding.severity {
        Severity::Allowed => "note",
        Severity::Suspicious => "warning",
        Severity::Dangerous => "error",
    };
    let mut location = json!({
        "physicalLocation": {
            "artifactLocation": { "uri": uri(&report.file) },
            "region": { "byteOffset": finding.at_byte, "byteLength": 0 },
        },
    });
    let mut message = finding.message.clone();
    if !finding.member.is_empty() {
        // Offsets count from the member's first byte, which is no place in the file itself.
        location["physicalLocation"]["region"] = json!({ "byteOffset": 0, "byteLength": 0 });
        location["logicalLocations"] =
            json!([{ "fullyQualifiedName": finding.member, "kind": "member" }]);
        let member = safelight_format::shown(&finding.member);
        message = format!("{member}, byte {}: {message}", finding.at_byte);
    }
    json!({
        "ruleId": finding.rule.name(),
        "ruleIndex": Rule::ALL.iter().position(|rule| *rule == finding.rule),
        "level": level,
        "message": { "text": message },
        "locations": [location],
        "occurrenceCount": finding.count.max(1),
        "properties": { "severity": finding.severity.word() },
    })
}

/// A path as a URI reference (RFC 3986): what is no unreserved character is escaped.
fn uri(path: &str) -> String {
    let path = path.replace('\\', "/");
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}
