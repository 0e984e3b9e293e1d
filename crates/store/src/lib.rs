//! Safetensors files: opened, mapped or read, sharded, written atomically.
