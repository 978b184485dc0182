//! Which layers, in which order, with which writable part: a mount plan.
