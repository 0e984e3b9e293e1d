//! Any bytes as a header: no panic, and what is accepted keeps every promise of the format.

use safelight_format::{
    FormatError, Header, HeaderPlan, Limits, Order, Strictness, TensorView, sniff,
};

/// The input as a whole file, then as the JSON of a file whose length and size are right.
pub(crate) fn run(input: &[u8]) {
    let _ = sniff(input);
    check(input, input.len() as u64);

    let mut file = (input.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(input);
    for strictness in [Strictness::Compat, Strictness::Spec] {
        let error = Header::parse(&file, file.len() as u64, strictness, &Limits::default()).err();
        // Too short: then this is the size it should have.
        if let Some(FormatError::FileTooShort {
            expected_bytes,
            intact_count,
            tensor_count,
            ..
        }) = error
        {
            assert!(intact_count < tensor_count);
            check(&file, expected_bytes);
        }
    }
    check(&file, file.len() as u64);
}

/// Both modes on a file of which `prefix` is the start.
fn check(prefix: &[u8], file_bytes: u64) {
    let parse = |strictness| Header::parse(prefix, file_bytes, strictness, &Limits::default());
    let (spec, compat) = (parse(Strictness::Spec), parse(Strictness::Compat));
    for result in [&spec, &compat] {
        match result {
            Ok(header) => keeps_promises(header, file_bytes),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !message.is_empty() && !message.contains(char::is_control),
                    "{message:?}"
                );
            }
        }
    }
    if let Ok(spec) = spec {
        let compat = compat.expect("what the strict mode accepts, the forgiving one does");
        assert_eq!(
            (spec.tensors(), spec.metadata()),
            (compat.tensors(), compat.metadata())
        );
    }
}

/// Tensors tile the data, are found by name, and a header written from them says the same.
fn keeps_promises(header: &Header, file_bytes: u64) {
    let mut expected_at = 0;
    for (position, tensor) in header.tensors().iter().enumerate() {
        assert_eq!(tensor.data_offsets.0, expected_at);
        assert_eq!(
            tensor.byte_count() * 8,
            tensor.element_count() * tensor.dtype.bits()
        );
        assert_eq!(header.position(tensor.name), Some(position));
        assert_eq!(header.get(tensor.name), Some(tensor));
        expected_at = tensor.data_offsets.1;
    }
    assert_eq!(header.data_bytes(), expected_at);
    assert_eq!(
        header.data_start().checked_add(expected_at),
        Some(file_bytes)
    );
    assert_eq!(header.get("no tensor is called this, surely"), None);

    if expected_at <= 1 << 16 && header.get("__metadata__").is_none() {
        written_again(header);
    }
}

fn written_again(header: &Header) {
    let data = vec![0; header.data_bytes() as usize];
    let tensors = header.tensors().iter().map(|tensor| TensorView {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        bytes: &data[tensor.data_offsets.0 as usize..tensor.data_offsets.1 as usize],
    });
    let tensors: Vec<TensorView<'_>> = tensors.collect();
    let plan = HeaderPlan::new(&tensors, header.metadata(), Order::Insertion)
        .expect("the tensors are sound");
    let again = Header::parse(
        plan.prefix(),
        plan.file_bytes(),
        Strictness::Spec,
        &Limits::default(),
    );
    let again = again.expect("what we write is strictly right");
    assert_eq!(
        (again.tensors(), again.metadata()),
        (header.tensors(), header.metadata())
    );
}
