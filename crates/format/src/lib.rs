//! The safetensors format: bytes in, headers and views out. Never does I/O.
#![forbid(unsafe_code)]
