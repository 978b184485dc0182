//! Everything that needs the whole program, root, or another tool. Run by `scripts/test`.

mod support;
