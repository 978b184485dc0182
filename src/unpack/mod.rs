//! A full layer: from a verified stream to a directory.
