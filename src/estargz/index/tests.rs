//! Tests of building, opening and asking an index.
