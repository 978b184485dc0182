//! Role dispatch, parsing, logging, exit code.

fn main() {}
