//! ONNX models against what onnx reads from them (`tools/golden/graphs.py`).

mod common;

use common::{check, notes};

#[test]
fn onnx() {
    let source = check("graph.onnx");
    assert_eq!(source.metadata()["author"], "nobody");
    assert_eq!(source.metadata()["onnx.producer_name"], "golden");
    assert_eq!(source.metadata()["onnx.graph.doc_string"], "a graph");
    let notes = notes(&*source);
    assert!(
        notes.iter().any(|note| note.contains("`words`: dropped")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("INT4 elements of 4 bits")),
        "{notes:?}"
    );
}

#[test]
fn onnx_with_data_in_another_file() {
    check("external.onnx");
}
