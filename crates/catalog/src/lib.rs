//! What lies in a models folder.
#![forbid(unsafe_code)]
