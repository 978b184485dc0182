//! The planner: observed and desired in, ordered actions out. Computes only.
