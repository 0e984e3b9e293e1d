//! CPU kernels: slices in, slices out. The scalar version of each is its specification.
