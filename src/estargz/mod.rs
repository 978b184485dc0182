//! The eStargz format: footer, table of contents, index, verification, writer. Computes only.
