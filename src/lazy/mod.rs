//! The engine of a lazy layer: tree, content cache, single flight, prefetch, background fill.
